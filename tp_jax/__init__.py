"""tp_jax: recursive sparse reasoning in diffusion transformers, after arXiv 2604.25299.

`tp_jax.Model` loads a trained model, samples from it and traces its routing.
"""

import sys
from typing import TYPE_CHECKING, Any

# As long as Python looks for the module of python -m tp_jax.NAME. The imports of a command take
# seconds, in which a Ctrl-C must not end it with a traceback.
_IN_COMMAND = any(name.removeprefix("-m").startswith("tp_jax.") for name in sys.orig_argv)
if sys.argv[:1] == ["-m"] and _IN_COMMAND:
    from tp_jax.cli import signals

    signals.install()

if TYPE_CHECKING:
    from tp_jax.sampling.model import Model, Routing

__all__ = ["Model", "Routing", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Imported at first use, because it imports jax, which takes seconds.
    if name in ("Model", "Routing"):
        from tp_jax.sampling import model

        return getattr(model, name)
    raise AttributeError(f"module 'tp_jax' has no attribute {name!r}")

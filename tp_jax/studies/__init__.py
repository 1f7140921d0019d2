"""Named comparisons of several variants of a config over several seeds; see README.md."""

from tp_jax.studies.grids import GRIDS
from tp_jax.studies.rivals import RIVALS
from tp_jax.studies.study import Build

__all__ = ["STUDIES"]

# value of --study -> the function that builds the study for a config
STUDIES: dict[str, Build] = GRIDS | RIVALS

"""Lines and progress bars on stderr, from the first process only."""

from typing import Any

from tqdm import tqdm

from tp_jax.messages.output import LenientStderr

# Of type Any, because tqdm and print want a stream.
_STDERR: Any = LenientStderr()


def say(text: str) -> None:
    """Print one line on stderr, from the first process only."""
    if _is_first_process():
        print(text, file=_STDERR, flush=True)


def progress_bar(total: int, what: str, unit: str = "img", *, shown: bool = True) -> tqdm:
    """Return a progress bar with rate and time left, on stderr of the first process only.

    Args:
      total: number of units of the whole job.
      what: title of the bar.
      unit: name of the units, such as "img".
      shown: False shows nothing.
    """
    hidden = not (shown and _is_first_process())
    return tqdm(total=total, desc=what, unit=unit, file=_STDERR, disable=hidden)


def _is_first_process() -> bool:
    # Imported here, because config files import modules that report progress.
    import jax

    return jax.process_index() == 0

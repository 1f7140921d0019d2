"""Lines and progress bars on stderr, from the first process only."""

import sys

import jax
from tqdm import tqdm


def say(text: str) -> None:
    """Print one line on stderr, from the first process only."""
    if jax.process_index() == 0:
        print(text, file=sys.stderr, flush=True)


def progress_bar(total: int, what: str, unit: str = "img") -> tqdm:
    """Return a progress bar with rate and time left, on stderr of the first process only.

    Args:
      total: number of units of the whole job.
      what: title of the bar.
      unit: name of the units, such as "img".
    """
    return tqdm(
        total=total, desc=what, unit=unit, file=sys.stderr, disable=jax.process_index() != 0
    )

"""Lines and progress bars on stderr, from the first process alone."""

import sys

import jax
from tqdm import tqdm


def say(text: str) -> None:
    """One line on stderr, from the first process alone."""
    if jax.process_index() == 0:
        print(text, file=sys.stderr, flush=True)


def progress_bar(total: int, what: str, unit: str = "img") -> tqdm:
    """A bar with rate and time left, on stderr of the first process alone."""
    return tqdm(
        total=total, desc=what, unit=unit, file=sys.stderr, disable=jax.process_index() != 0
    )

"""Check arrays when they are read from files, and before they are written: NaN, dtypes."""

from collections.abc import Sequence

import numpy as np

from tp_jax.messages.errors import NotFiniteError, UserError

# Values that are checked at once, which bounds the memory of the check.
_CHUNK = 1 << 24


def check_finite(
    name: str, array: np.ndarray, remedy: str, origin: Sequence[int | None] = ()
) -> None:
    """Raise a NotFiniteError if an array of floats has NaN or infinity; other dtypes always pass.

    Args:
      name: what the array is, for the error message, such as "FILE: the weight blocks.0.bias".
      array: array of any shape. bfloat16 and float8 of ml_dtypes count as floats.
      remedy: what the user can do, for the error message.
      origin: where the array starts in a larger one, whose index the message then names.

    Example:
      >>> check_finite("W.npz: mean", np.array([[0.0, np.nan]]), "write it again")
      Traceback (most recent call last):
      tp_jax.messages.errors.NotFiniteError: W.npz: mean has the value nan at [0, 1]: write it again
    """
    if array.dtype.kind in "biuSUOM":
        return
    flat = array.reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        bad = ~np.isfinite(flat[start : start + _CHUNK])
        if bad.any():
            index = np.unravel_index(start + int(bad.argmax()), array.shape)
            value = array[index]
            index = tuple(np.add(index, [start or 0 for start in origin])) if origin else index
            where = f" at [{', '.join(map(str, index))}]" if index else ""
            raise NotFiniteError(f"{name} has the value {value}{where}: {remedy}")


def check_floating(name: str, array: np.ndarray, remedy: str) -> None:
    """Raise a UserError if an array holds integers or booleans, as quantised weights do.

    Args:
      name, array, remedy: as for `check_finite`.

    Example:
      >>> check_floating("W: fc.weight", np.zeros(2, np.int8), "give weights that aren't quantised")
      Traceback (most recent call last):
      tp_jax.messages.errors.UserError: W: fc.weight holds int8, not floating-point numbers: ...
    """
    if array.dtype.kind in "biuc":
        raise UserError(f"{name} holds {array.dtype}, not floating-point numbers: {remedy}")

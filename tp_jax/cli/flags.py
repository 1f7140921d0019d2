"""Read and check flag values."""

from typing import TypeVar, cast

from absl import flags

from tp_jax.messages.errors import UserError

Number = TypeVar("Number", int, float)


def required(name: str) -> str:
    """Return the value of a flag that must be given.

    Raises:
      UserError: it wasn't given.
    """
    value = flags.FLAGS[name].value
    if not value:
        raise UserError(f"--{name} is missing: {flags.FLAGS[name].help}")
    return value


def integers(name: str) -> tuple[int, ...]:
    """Return the value of a list flag as integers.

    Raises:
      UserError: an item isn't an integer.
    """
    return _listed(name, int, "whole numbers, such as 0,1,2")


def numbers(name: str) -> tuple[float, ...]:
    """Return the value of a list flag as floats.

    Raises:
      UserError: an item isn't a number.
    """
    return _listed(name, float, "numbers, such as 1,1.5,2")


def _listed(name: str, kind: type[Number], what: str) -> tuple[Number, ...]:
    values = cast(list[str], flags.FLAGS[name].value)
    try:
        return tuple(kind(value) for value in values)
    except ValueError as error:
        raise UserError(f"--{name}={','.join(values)}: give {what}") from error

"""Check values against type annotations with ranges and choices."""

import ctypes
import dataclasses
import functools
import itertools
import math
import numbers
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from tp_jax.messages.errors import UserError

# Longer values are cut in error messages.
_SHOWN = 120


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`; of a tuple, each item.

    A float must be in the range also after rounding to float32, because devices compute with it.

    Attributes:
      low, high: the bounds.
      above, below: whether the numbers must be above `low` and below `high`, not equal to them.
    """

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False

    def __contains__(self, value: Any) -> bool:
        return (value > self.low if self.above else value >= self.low) and (
            value < self.high if self.below else value <= self.high
        )

    def as_float32(self) -> "Range":
        """Return the range with rounded bounds."""
        return Range(_float32(self.low), _float32(self.high), self.above, self.below)

    def describe(self, kind: type) -> str:
        """Return the range in words, such as "1 or more, up to 1000" or "in [0, 1)"."""
        if kind is int:
            return f"{self.low} or more, up to {self.high}"
        if math.isinf(self.high):
            return f"above {self.low:g}" if self.above else f"{self.low:g} or more"
        return f"in {'[('[self.above]}{self.low:g}, {self.high:g}{'])'[self.below]}"


class Choice(tuple[str, ...]):
    """The texts that a field may have; of a tuple, those of each item."""

    def __new__(cls, *values: str) -> "Choice":
        """Make a choice between values; "" is written as '' in messages."""
        return super().__new__(cls, values)


@dataclasses.dataclass(frozen=True)
class Text:
    """A function that checks a text and returns the text to use, such as a path without ~.

    Attributes:
      read: text -> text; raises a ValueError that says what is wrong.
    """

    read: Callable[[str], str]


class Ascending:
    """The items of a tuple must not descend."""


@dataclasses.dataclass(frozen=True)
class Allowed:
    """An annotation, taken apart.

    Attributes:
      kind: bool, int, float, str, or another type, whose values aren't checked; of a tuple, that of
        its items.
      is_tuple: whether it is a tuple.
      length: number of items of a tuple; None is any.
      details: what `Annotated` adds: at most one of each class, and a text that takes the place of
        the usual error message.
    """

    kind: type
    is_tuple: bool = False
    length: int | None = None
    details: tuple[Any, ...] = ()

    def find(self, kind: type) -> Any:
        """Return the detail of a class; None if there is none."""
        return next((detail for detail in self.details if isinstance(detail, kind)), None)


@functools.cache
def allowed(annotation: Any) -> Allowed:
    """Take an annotation apart."""
    if get_origin(annotation) is Annotated:
        inner, *details = get_args(annotation)
        found = allowed(inner)
        return dataclasses.replace(found, details=(*details, *found.details))
    if get_origin(annotation) is Literal:
        return Allowed(str, details=(Choice(*get_args(annotation)),))
    if get_origin(annotation) is tuple:
        item, *others = get_args(annotation)
        length = None if others == [...] else 1 + len(others)
        return dataclasses.replace(allowed(item), is_tuple=True, length=length)
    return Allowed(annotation)


def checked(name: str, value: Any, annotation: Any) -> Any:
    """Return a value if its annotation allows it, with the ~ of a path expanded.

    Args:
      name: the flag, field or argument, for the error message.
      value: the value.
      annotation: bool, int, float, str, a `Literal`, a tuple of these, or one of them in
        `Annotated` with a `Range`, `Choice`, `Text` or `Ascending`. A text in `Annotated` takes the
        place of the usual error message.

    Raises:
      UserError: the value has another type, isn't finite or is out of range, or isn't one of the
        choices.

    Example:
      >>> checked("eta", 0.5, Annotated[float, Range(0, 1)])
      0.5
      >>> checked("eta", float("nan"), Annotated[float, Range(0, 1)])
      Traceback (most recent call last):
      tp_jax.messages.errors.UserError: eta=nan: must be in [0, 1]
    """
    try:
        return read(value, annotation)
    except ValueError as error:
        raise UserError(f"{name}={_shown(value)}: {error}") from error


def check_fields(dataclass: Any, prefix: str) -> None:
    """Check the fields of a frozen dataclass in its `__post_init__`; lists become tuples.

    Args:
      dataclass: the dataclass, whose annotations say what is allowed.
      prefix: of the fields' names in error messages, such as "config.model.".

    Raises:
      UserError: a value isn't allowed.
    """
    for name, annotation in annotations(type(dataclass)).items():
        value = checked(f"{prefix}{name}", getattr(dataclass, name), annotation)
        object.__setattr__(dataclass, name, value)


@functools.cache
def annotations(dataclass: type[Any]) -> Mapping[str, Any]:
    """Return the annotations of the fields of a dataclass."""
    hints = get_type_hints(dataclass, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(dataclass)}


def read(value: Any, annotation: Any) -> Any:
    """Return a value as `checked` does; raise a ValueError that says what is wrong with it."""
    what = allowed(annotation)
    try:
        return _read_tuple(value, what) if what.is_tuple else _read_one(value, what)
    except ValueError as error:
        raise ValueError(what.find(str) or str(error)) from error


def _read_tuple(value: Any, what: Allowed) -> tuple[Any, ...]:
    words = {int: "integers", float: "numbers", str: "texts"}[what.kind]
    if not isinstance(value, tuple | list):
        raise ValueError(f"must be a tuple of {words}")
    values = tuple(_read_one(item, what) for item in value)
    if what.length not in (None, len(values)):
        raise ValueError(f"must be {what.length} {words}")
    if what.find(Ascending) and any(a > b for a, b in itertools.pairwise(values)):
        raise ValueError("must not descend")
    return values


def _read_one(value: Any, what: Allowed) -> Any:
    if what.kind is bool and not isinstance(value, bool):
        raise ValueError("must be a boolean: true or false")
    if what.kind in (int, float):
        _check_number(value, what.kind, what.find(Range) or Range())
    if what.kind is str:
        return _read_text(value, what)
    return value


def _check_number(value: Any, kind: type, bounds: Range) -> None:
    if isinstance(value, bool) or not isinstance(
        value, numbers.Integral if kind is int else numbers.Real
    ):
        example = "an integer, such as 3" if kind is int else "a number (float), such as 0.5"
        raise ValueError(f"must be {example}")
    if kind is int and value not in bounds:
        raise ValueError(f"must be {bounds.describe(int)}")
    if kind is float:
        rounded = _float32(value)
        if bounds == Range() and not math.isfinite(rounded):
            raise ValueError("give a finite number")
        if value not in bounds or not math.isfinite(rounded):
            raise ValueError(f"must be {bounds.describe(float)}")
        if rounded not in bounds.as_float32():
            raise ValueError(f"must be {bounds.describe(float)} after rounding to float32")


def _float32(value: Any) -> float:
    try:
        return ctypes.c_float(float(value)).value
    except OverflowError:  # an integer beyond the floats
        return math.inf


def _read_text(value: Any, what: Allowed) -> str:
    if not isinstance(value, str):
        raise ValueError("must be a text")
    choice, text = what.find(Choice), what.find(Text)
    if choice is not None and value not in choice:
        raise ValueError(f"choose one of {', '.join(each or repr('') for each in choice)}")
    return text.read(value) if text else value


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python refuses to write integers of thousands of digits.
        return "a very long number"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"

"""Fields that differ between two descriptions, e.g. of a new run and of the folder it resumes."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple


class Difference(NamedTuple):
    """A field whose values differ; a value is None if the field is missing on that side."""

    name: str
    old: Any
    new: Any


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Difference]:
    """Yield the fields that differ: first in the order of `new`, then those only in `old`."""
    for name in (*new, *(name for name in old if name not in new)):
        if old.get(name) != new.get(name):
            yield Difference(name, old.get(name), new.get(name))


def first_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> Difference | None:
    """Return the first of `differences`, or None if the descriptions are equal."""
    return next(differences(old, new), None)

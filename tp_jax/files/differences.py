"""What differs between two descriptions, as of a run and of the folder that it finds."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple


class Difference(NamedTuple):
    """A field whose values differ; a field that one side lacks is None there."""

    name: str
    old: Any
    new: Any


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Difference]:
    """The fields that differ, in the order of `new`, and then those that only `old` has."""
    for name in (*new, *(name for name in old if name not in new)):
        if old.get(name) != new.get(name):
            yield Difference(name, old.get(name), new.get(name))


def first_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> Difference | None:
    """The first of `differences`; None where there is none."""
    return next(differences(old, new), None)

"""Which records of a source train a model, and which are held out for validation."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from tp_jax.data.source import Source
from tp_jax.data.sources import SOURCES, TFDS_PREFIX, SourceKind
from tp_jax.messages.errors import UserError


@dataclasses.dataclass(frozen=True)
class Part:
    """Some records of a source, with random access.

    Attributes:
      source: the source.
      rows: the index in the source of each record of the part.
    """

    source: Source
    rows: Sequence[int] | np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.source.records[int(self.rows[index])]

    def record_name(self, index: int) -> str:
        """Return the name of a record, for messages."""
        return self.source.record_name(int(self.rows[index]))


def training_part(source: Source, config: ConfigDict) -> Part:
    """Return the records that training reads: all that `config.validation.fraction` leaves."""
    count, fields = len(source.records), config.validation
    if not fields.fraction:
        return Part(source, range(count))
    kept = record_hashes(count, fields.seed) >= fields.fraction
    return Part(source, np.flatnonzero(kept))


def held_out_part(source: Source, config: ConfigDict) -> Part:
    """Return the records that `config.validation.fraction` holds out, in a random order.

    The order is that of their hashes, so that the first of them are a random subset, also if the
    records are sorted by class.
    """
    hashes = record_hashes(len(source.records), config.validation.seed)
    rows = np.argsort(hashes)
    return Part(source, rows[: np.count_nonzero(hashes < config.validation.fraction)])


def shuffled(source: Source, config: ConfigDict) -> Part:
    """Return all records of a source that isn't trained on, in the order of their hashes."""
    return Part(source, np.argsort(record_hashes(len(source.records), config.validation.seed)))


def record_hashes(count: int, seed: int) -> np.ndarray:
    """Return a number in [0, 1) for each record, which looks random but depends on nothing else.

    Args:
      count: number n of records.
      seed: another seed gives other numbers.

    Returns:
      [n] float64, a hash of (seed, index of the record). Records that are added at the end don't
      change the numbers of the others.

    Source: the output function of SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable
    pseudorandom number generators"), applied to the index and the seed.

    Example:
      >>> bool((record_hashes(3, seed=0) == record_hashes(5, seed=0)[:3]).all())
      True
    """
    start = _mix(np.array([seed], np.uint64))
    mixed = _mix(start + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    # The upper 53 bits, as many as a float64 holds.
    return (mixed >> np.uint64(11)) / 2.0**53


def _mix(z: np.ndarray) -> np.ndarray:
    # uint64 arrays wrap around on overflow, as the hash requires.
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def check_held_out(source: Source, config: ConfigDict) -> None:
    """Raise a UserError unless `config.validation` fits the source.

    Args:
      source: the training source.
      config: the whole config.
    """
    fields, name = config.validation, config.data.source
    given = [field for field in ("fraction", "split", "dir") if fields[field]]
    if not given:
        return
    if source.validation_sources(0):
        raise UserError(
            f"config.validation.{given[0]}={fields[given[0]]!r}: {name} generates its examples, "
            f"and validation uses others than training anyway: leave it at the default"
        )
    if fields.fraction and len(given) > 1:
        raise UserError(
            f"config.validation.fraction={fields.fraction} and .{given[1]}={fields[given[1]]!r}: "
            f"hold out a share of the training records, or name other records, not both"
        )
    if fields.fraction:
        hashes = record_hashes(len(source.records), fields.seed)
        held_out = int((hashes < fields.fraction).sum())
        if held_out in (0, len(hashes)):
            raise UserError(
                f"config.validation.fraction={fields.fraction} holds out {held_out} of the "
                f"{len(hashes)} records of {name}: choose another share"
            )
        return
    _check_other_place(config, given)


def _check_other_place(config: ConfigDict, given: list[str]) -> None:
    """Check that the source has the split or folder, and that it isn't the one of training."""
    fields, name = config.validation, config.data.source
    kind = SOURCES.get(name, SourceKind())
    read = ("dir", "split") if name.startswith(TFDS_PREFIX) else kind.reads
    for field in given:
        if field not in read:
            what = {"dir": "folders", "split": "splits"}[field]
            raise UserError(
                f"config.validation.{field}={fields[field]!r}: {name} has no {what}: set "
                f"config.validation.fraction instead"
            )
    if validation_place(config) == (config.data.dir, config.data.split):
        raise UserError(
            f"config.validation.{given[0]}={fields[given[0]]!r} names the training data: name "
            f"others, or set config.validation.fraction"
        )


def validation_place(config: ConfigDict) -> tuple[str, str]:
    """Return the folder and the split of the validation records, if others than in training."""
    fields, data = config.validation, config.data
    return fields.dir or data.dir, fields.split or data.split

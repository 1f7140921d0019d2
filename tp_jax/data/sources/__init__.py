"""The registry of data sources, by the value of `config.data.source`."""

import dataclasses
from collections.abc import Callable

import jax
from ml_collections import ConfigDict

from tp_jax.data.source import Source
from tp_jax.data.sources.captions import open_captions, open_coco
from tp_jax.data.sources.digits import open_digits
from tp_jax.data.sources.folder import open_folder
from tp_jax.data.sources.frozenlake import frames_before_last, make_frozenlake
from tp_jax.data.sources.latents import open_latents
from tp_jax.data.sources.shapes import make_shapes
from tp_jax.data.sources.synthetic import make_synthetic
from tp_jax.data.sources.tfds_images import open_tfds
from tp_jax.messages.errors import UserError

# Shapes and dtypes of batched arrays [B, …], by name.
AbstractArrays = dict[str, jax.ShapeDtypeStruct]


@dataclasses.dataclass(frozen=True)
class SourceKind:
    """How to open a source; exactly one of `from_disk` and `from_config` is set.

    Attributes:
      from_disk: (dir, split, section of the config) -> source, for data in files or in the package.
      from_config: whole config -> source, for examples that are generated to fit the config.
      extras: whole config -> shapes and dtypes of the arrays that a batch holds in addition to "x",
        "index" and "condition"; None if there are no others.
      reads: which of `dir` and `split` decide what `from_disk` reads.
    """

    from_disk: Callable[[str, str, str], Source] | None = None
    from_config: Callable[[ConfigDict], Source] | None = None
    extras: Callable[[ConfigDict], AbstractArrays] | None = None
    reads: tuple[str, ...] = ("dir", "split")


# `tfds/NAME` isn't listed here: it opens any TFDS image data set.
SOURCES: dict[str, SourceKind] = {
    "captions": SourceKind(open_captions),
    "coco": SourceKind(open_coco),
    "digits": SourceKind(open_digits, reads=()),
    "folder": SourceKind(open_folder),
    "frozenlake": SourceKind(from_config=make_frozenlake, extras=frames_before_last),
    "latents": SourceKind(open_latents, reads=("dir",)),
    "shapes": SourceKind(from_config=make_shapes),
    "synthetic": SourceKind(from_config=make_synthetic),
}
TFDS_PREFIX = "tfds/"


def open_named(section: str, name: str, dir: str, split: str) -> Source:
    """Open a source whose data are on disk or in the package.

    Args:
      section: section of the config that holds the next three fields, for error messages.
      name: a key of `SOURCES`, or tfds/NAME.
      dir, split: folder and split of the data.

    Raises:
      UserError: the source is unknown, or its data aren't on disk.

    Example:
      >>> digits = open_named("config.data", "digits", dir="", split="")
      >>> len(digits.records), digits.image_size, digits.channels
      (1797, 8, 1)
    """
    if name.startswith(TFDS_PREFIX):
        return open_tfds(name.removeprefix(TFDS_PREFIX), dir, split, section)
    kind = SOURCES.get(name, SourceKind())
    if kind.from_config:
        raise UserError(
            f"{section}.source={name!r} makes its examples on demand: train on it without "
            f"tp_jax.prepare"
        )
    if kind.from_disk is None:
        raise UserError(
            f"{section}.source={name!r} is unknown: choose one of {', '.join(sorted(SOURCES))}, or "
            f"{TFDS_PREFIX}NAME"
        )
    return kind.from_disk(dir, split, section)

"""The registry of data sources, by the value of `config.data.source`."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
from ml_collections import ConfigDict

from tp_jax.data.source import Source
from tp_jax.data.sources.captions import open_captions, open_coco
from tp_jax.data.sources.digits import open_digits
from tp_jax.data.sources.folder import open_folder
from tp_jax.data.sources.frozenlake import frames_before_last, make_frozenlake
from tp_jax.data.sources.huggingface import open_datasets
from tp_jax.data.sources.latents import open_latents
from tp_jax.data.sources.shapes import make_shapes
from tp_jax.data.sources.synthetic import make_synthetic
from tp_jax.data.sources.tars import open_tars
from tp_jax.data.sources.tfds_images import open_tfds
from tp_jax.messages.errors import UserError

# Shapes and dtypes of batched arrays [B, …], by name.
AbstractArrays = dict[str, jax.ShapeDtypeStruct]


@dataclasses.dataclass(frozen=True)
class SourceKind:
    """How to open a source; exactly one of `from_disk` and `from_config` is set.

    Attributes:
      from_disk: (dir, split, section of the config) -> source, for data in files or in the package;
        if it reads columns, they are a fourth argument.
      from_config: whole config -> source, for examples that are generated to fit the config.
      extras: whole config -> shapes and dtypes of the arrays that a batch holds in addition to "x",
        "index" and "condition"; None if there are no others.
      reads: which of `dir`, `split` and `columns` decide what `from_disk` reads.
    """

    from_disk: Callable[..., Source] | None = None
    from_config: Callable[[ConfigDict], Source] | None = None
    extras: Callable[[ConfigDict], AbstractArrays] | None = None
    reads: tuple[str, ...] = ("dir", "split")


# `tfds/NAME` isn't listed here: it opens any TFDS image data set.
SOURCES: dict[str, SourceKind] = {
    "captions": SourceKind(open_captions),
    "coco": SourceKind(open_coco),
    "datasets": SourceKind(open_datasets, reads=("dir", "split", "columns")),
    "digits": SourceKind(open_digits, reads=()),
    "folder": SourceKind(open_folder),
    "frozenlake": SourceKind(from_config=make_frozenlake, extras=frames_before_last),
    "latents": SourceKind(open_latents, reads=("dir",)),
    "shapes": SourceKind(from_config=make_shapes),
    "synthetic": SourceKind(from_config=make_synthetic),
    "webdataset": SourceKind(open_tars),
}
TFDS_PREFIX = "tfds/"


def open_named(
    section: str, name: str, dir: str, split: str, columns: Sequence[str] = ()
) -> Source:
    """Open a source whose data are on disk or in the package.

    Args:
      section: section of the config that holds the next three fields, for error messages.
      name: a key of `SOURCES`, or tfds/NAME.
      dir, split: folder and split of the data.
      columns: names of the columns, for sources that have them.

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
    if "columns" in kind.reads:
        return kind.from_disk(dir, split, section, columns)
    if columns:
        raise UserError(
            f"{section}.columns={tuple(columns)}: {name} has no columns: leave it empty"
        )
    return kind.from_disk(dir, split, section)

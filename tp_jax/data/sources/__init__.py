"""Data sources by the name that `config.data.source` gives them; a new one is a file and a line."""

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
from tp_jax.data.sources.shapes import open_shapes
from tp_jax.data.sources.synthetic import make_synthetic
from tp_jax.data.sources.tfds_images import open_tfds
from tp_jax.messages.errors import UserError

# Shapes and dtypes of arrays [B, …], by their names.
AbstractArrays = dict[str, jax.ShapeDtypeStruct]


@dataclasses.dataclass(frozen=True)
class SourceKind:
    """How a source is opened: by one of two functions.

    Attributes:
      from_disk: (dir, split, section of the config) -> source; of files, or of the package itself.
      from_config: whole config -> source, whose examples are made as the config wants them.
      extras: whole config -> what a batch holds beside "x", "index" and "condition"; None where
        that is nothing.
    """

    from_disk: Callable[[str, str, str], Source] | None = None
    from_config: Callable[[ConfigDict], Source] | None = None
    extras: Callable[[ConfigDict], AbstractArrays] | None = None


# `config.data.source` -> kind. `tfds/NAME` is any TFDS image data set.
SOURCES: dict[str, SourceKind] = {
    "captions": SourceKind(open_captions),
    "coco": SourceKind(open_coco),
    "digits": SourceKind(open_digits),
    "folder": SourceKind(open_folder),
    "frozenlake": SourceKind(from_config=make_frozenlake, extras=frames_before_last),
    "latents": SourceKind(open_latents),
    "shapes": SourceKind(open_shapes),
    "synthetic": SourceKind(from_config=make_synthetic),
}
TFDS_PREFIX = "tfds/"


def open_named(section: str, name: str, dir: str, split: str) -> Source:
    """Opens a source that is on disk or in the package.

    Args:
      section: of the config, for errors.

    Raises:
      UserError: the source is unknown, or isn't on disk.
    """
    if name.startswith(TFDS_PREFIX):
        return open_tfds(name.removeprefix(TFDS_PREFIX), dir, split, section)
    kind = SOURCES.get(name, SourceKind())
    if kind.from_disk is None:
        raise UserError(
            f"{section}.source={name!r} is unknown: choose one of {', '.join(sorted(SOURCES))}, or "
            f"{TFDS_PREFIX}NAME"
        )
    return kind.from_disk(dir, split, section)

"""The input pipeline: one seeded, global, elastic order, whatever the hosts and workers."""

import dataclasses
from collections.abc import Callable

import grain
import jax
import numpy as np
from ml_collections import ConfigDict

from tp_jax.data.source import Source
from tp_jax.data.sources.captions import open_captions, open_coco
from tp_jax.data.sources.digits import open_digits
from tp_jax.data.sources.folder import open_folder
from tp_jax.data.sources.frozenlake import make_frozenlake
from tp_jax.data.sources.latents import LatentSource, open_latents
from tp_jax.data.sources.shapes import open_shapes
from tp_jax.data.sources.synthetic import make_synthetic
from tp_jax.data.sources.tfds_images import open_tfds
from tp_jax.data.transforms import ReadExample
from tp_jax.latents.space import LatentSpace
from tp_jax.messages.errors import UserError
from tp_jax.text import WITHOUT_WEIGHTS, TextEncoder, TextSpace, load_encoder

# `config.data.source` -> function of (dir, split, section of the config). `tfds/NAME` is any TFDS
# image data set.
SOURCES: dict[str, Callable[[str, str, str], Source]] = {
    "captions": open_captions,
    "coco": open_coco,
    "digits": open_digits,
    "folder": open_folder,
    "latents": open_latents,
    "shapes": open_shapes,
}
# Those that are made as the whole config wants them.
MADE: dict[str, Callable[[ConfigDict], Source]] = {
    "frozenlake": make_frozenlake,
    "synthetic": make_synthetic,
}
TFDS_PREFIX = "tfds/"
# Batches that are read ahead; Grain's own 500 of encoded text don't fit any memory.
AHEAD = 8


def open_named(section: str, name: str, dir: str, split: str) -> Source:
    """Opens a source that is on disk or in the package.

    Args:
      section: of the config, for errors.

    Raises:
      UserError: the source is unknown, or isn't on disk.
    """
    if name.startswith(TFDS_PREFIX):
        return open_tfds(name.removeprefix(TFDS_PREFIX), dir, split, section)
    if name not in SOURCES:
        raise UserError(
            f"{section}.source={name!r} is unknown: choose one of "
            f"{', '.join(sorted(SOURCES | MADE))}, "
            f"or {TFDS_PREFIX}NAME"
        )
    return SOURCES[name](dir, split, section)


def open_source(config: ConfigDict, space: LatentSpace | None = None) -> Source:
    """Opens `config.data.source`.

    Args:
      space: of the autoencoder whose latents the model diffuses; None where it diffuses pixels,
        or latents of an autoencoder that isn't here.

    Raises:
      UserError: the source is unknown, isn't on disk, or doesn't fit the model or the space.
    """
    model, data = config.model, config.data
    if data.source in MADE:
        source = MADE[data.source](config)
    else:
        source = open_named("config.data", data.source, data.dir, data.split)
        _check_fit(source, config, space)
    if model.kind == "dit":
        _check_classes(source, config)
    elif source.gives == "label":
        raise UserError(
            f"{data.source} has labels, but a {model.kind} model takes text: choose a source with "
            f"captions"
        )
    elif source.text_space:
        check_text(source.text_space, model, f"the text in {data.dir}")
    return source


def _check_classes(source: Source, config: ConfigDict) -> None:
    model, data = config.model, config.data
    if (source.gives == "frame") != bool(model.frame):
        raise UserError(
            f"config.model.frame={model.frame!r}, but {data.source} gives "
            f"{'a first frame: choose channels or tokens' if not model.frame else 'none'}"
        )
    if source.gives not in ("label", "frame"):
        raise UserError(
            f"{data.source} has captions, but a {model.kind} model takes labels: choose a source "
            f"with labels, or a model that takes text"
        )
    if model.num_classes not in (0, len(source.class_names)):
        raise UserError(
            f"config.model.num_classes={model.num_classes}, but {data.source} has "
            f"{len(source.class_names)} classes (0 trains without classes)"
        )


def open_text(source: Source, config: ConfigDict) -> TextEncoder | None:
    """What encodes the source's captions on the way to the model; None where nothing has to.

    Raises:
      UserError: the encoder isn't one that workers can run, or doesn't fit the model.
    """
    if source.gives != "caption":
        return None
    if config.text.encoder not in WITHOUT_WEIGHTS:
        raise UserError(
            f"{config.data.source} has captions that aren't encoded: python -m tp_jax.prepare "
            f"writes them as config.text.encoder={config.text.encoder!r} encodes them, and "
            f'config.data.source="latents" reads them'
        )
    encoder = load_encoder(config.text)
    check_text(encoder.space, config.model, "config.text.encoder")
    return encoder


def check_text(space: TextSpace, model: ConfigDict, what: str) -> None:
    """Raises a UserError unless a model takes what an encoder gives."""
    for field, found in (
        ("text_tokens", space.tokens),
        ("text_width", space.width),
        ("pooled_width", space.pooled_width),
    ):
        if model[field] != found:
            raise UserError(
                f"config.model.{field}={model[field]}, but that of {what} is {found}: set it so, "
                f"or name another encoder"
            )


def _check_fit(source: Source, config: ConfigDict, space: LatentSpace | None) -> None:
    model, what, channels = config.model, "images", config.model.channels
    if isinstance(source, LatentSource):
        what = "latents"
        if space:
            source.check_space(space)
    elif space:
        if space.channels != channels:
            raise UserError(
                f"config.model.channels={channels}, but the latents of config.autoencoder.path "
                f"have {space.channels}"
            )
        channels = 3
    if source.channels != channels:
        raise UserError(
            f"config.model.channels={model.channels}, but the {what} of {config.data.source} "
            f"have {source.channels}"
        )
    size = example_size(source, config, space)
    if source.image_size not in (None, size):
        raise UserError(
            f"config.model.image_size={model.image_size}, but the {what} of "
            f"{config.data.source} are {source.image_size} a side"
        )


def encodes_on_the_fly(source: Source, space: LatentSpace | None) -> bool:
    """Whether the source's examples are pixels that the autoencoder has yet to encode."""
    return space is not None and source.pixels


def example_size(source: Source, config: ConfigDict, space: LatentSpace | None) -> int:
    """Side of the pipeline's examples: pixels, where they are encoded on the fly."""
    factor = space.factor if encodes_on_the_fly(source, space) else 1
    return config.model.image_size * factor


class _Unlabel(grain.transforms.Map):
    """For the unconditional model, whose one label is 0."""

    def map(self, element: dict) -> dict:
        condition = element["condition"]
        return element | {"condition": condition | {"label": condition["label"] * 0}}


@dataclasses.dataclass(frozen=True)
class _Encode(grain.transforms.Map):
    """{"caption"} -> {"text", "pooled"} and those of the empty prompt, "null_…"."""

    encoder: TextEncoder
    null: dict[str, np.ndarray]

    def map(self, element: dict) -> dict:
        found = self.encoder.encode([element["condition"]["caption"]])
        condition = {name: array[0] for name, array in found.items()}
        return element | {"condition": condition | self.null}


def _encoding(encoder: TextEncoder) -> _Encode:
    null = {f"null_{name}": array[0] for name, array in encoder.encode([""]).items()}
    return _Encode(encoder, null)


def example_conditions(
    source: Source, encoder: TextEncoder | None, num: int
) -> dict[str, np.ndarray]:
    """Conditions [num, …] of the source's first records, again and again where it has fewer."""
    rows, decode = [], source.decoder(1, False)
    read = ReadExample(source.records, decode, source.record_name, source.remedy, skip_corrupt=True)
    encoding = _encoding(encoder) if encoder else None
    for index in range(num):
        example = read.random_map(index % len(source.records), np.random.default_rng(index))
        example = encoding.map(example) if encoding else example
        rows.append(example["condition"])
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def make_iterator(
    source: Source,
    config: ConfigDict,
    space: LatentSpace | None = None,
    encoder: TextEncoder | None = None,
) -> grain.DatasetIterator:
    """Batches {"x": [B, H, W, C] float32, "condition": …} of this process's share, for ever.

    Every epoch is shuffled anew. The iterator's state is one global index, so a run may go on
    with other numbers of hosts or workers and sees the same global batches.
    """
    if len(source.records) < config.train.batch_size:
        raise UserError(
            f"config.train.batch_size={config.train.batch_size} is larger than "
            f"{config.data.source}, which has {len(source.records)} images: choose fewer"
        )
    decode = source.decoder(example_size(source, config, space), config.data.flip)
    skip = config.data.skip_corrupt
    read = ReadExample(source.records, decode, source.record_name, source.remedy, skip)
    dataset = grain.MapDataset.range(len(source.records)).seed(config.seed).shuffle().repeat()
    dataset = dataset.random_map(read)
    if encoder:
        dataset = dataset.map(_encoding(encoder))
    if getattr(config.model, "num_classes", None) == 0:
        dataset = dataset.map(_Unlabel())
    workers = config.data.workers
    return iter(
        grain.experimental.ElasticIterator(
            dataset,
            config.train.batch_size,
            grain.sharding.ShardOptions(
                shard_index=jax.process_index(),
                shard_count=jax.process_count(),
                drop_remainder=True,
            ),
            read_options=grain.ReadOptions(num_threads=AHEAD, prefetch_buffer_size=AHEAD),
            multiprocessing_options=grain.MultiprocessingOptions(workers) if workers else None,
        )
    )

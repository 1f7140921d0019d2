"""The input pipeline: one seeded, global, elastic order, whatever the hosts and workers."""

import dataclasses
from typing import Any

import flax.linen as nn
import grain
import jax
import numpy as np
from ml_collections import ConfigDict

from tp_jax import config as config_lib
from tp_jax.data.source import Source
from tp_jax.data.sources import SOURCES, SourceKind, open_named
from tp_jax.data.sources.latents import LatentSource
from tp_jax.data.transforms import ReadExample
from tp_jax.latents.space import LatentSpace
from tp_jax.messages.errors import UserError
from tp_jax.models import TransformerConfig
from tp_jax.text import WITHOUT_WEIGHTS, TextEncoder, TextSpace, load_encoder

# Batches that are read ahead; Grain's own 500 of encoded text don't fit any memory.
AHEAD = 8


def open_source(config: ConfigDict, space: LatentSpace | None = None) -> Source:
    """Opens `config.data.source`.

    Args:
      space: of the autoencoder whose latents the model diffuses; None where it diffuses pixels,
        or latents of an autoencoder that isn't here.

    Raises:
      UserError: the source is unknown, isn't on disk, or doesn't fit the model or the space.
    """
    model, data = config_lib.model_config(config), config.data
    kind = SOURCES.get(data.source)
    if kind and kind.from_config:
        source = kind.from_config(config)
    else:
        source = open_named("config.data", data.source, data.dir, data.split)
        _check_fit(source, config, space)
    _check_condition(source, config, model)
    if source.text_space:
        check_text(source.text_space, model, f"the text in {data.dir}")
    return source


# What a model takes -> what a source may give.
GIVEN = {"label": ("label",), "frame": ("frame",), "text": ("caption", "text")}


def _check_condition(source: Source, config: ConfigDict, model: TransformerConfig) -> None:
    """Raises a UserError unless the source gives what the model takes."""
    name, kind = config.data.source, config.model.kind
    if source.gives not in GIVEN[model.condition_kind]:
        if model.condition_kind == "label" and source.gives == "frame":
            raise UserError(
                f"config.model.frame={config.model.frame!r}, but {name} gives a first frame: "
                f"choose channels or tokens"
            )
        if model.condition_kind == "frame":
            raise UserError(f"config.model.frame={config.model.frame!r}, but {name} gives none")
        given = {"label": "labels", "frame": "frames"}.get(source.gives, "captions")
        wanted = {"label": "labels", "text": "text"}[model.condition_kind]
        remedy = {
            "label": "choose a source with labels, or a model that takes text",
            "text": "choose a source with captions",
        }[model.condition_kind]
        raise UserError(f"{name} has {given}, but a {kind} model takes {wanted}: {remedy}")
    if model.condition_kind != "text" and model.classes not in (0, len(source.class_names)):
        raise UserError(
            f"config.model.num_classes={model.classes}, but {name} has "
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
    check_text(encoder.space, config_lib.model_config(config), "config.text.encoder")
    return encoder


def check_text(space: TextSpace, model: TransformerConfig, what: str) -> None:
    """Raises a UserError unless a model takes what an encoder gives."""
    if model.text is None:
        raise UserError(f"the model takes no text, but {what} gives some: choose another model")
    found = {
        "text_tokens": (space.tokens, model.text.tokens),
        "text_width": (space.width, model.text.width),
        "pooled_width": (space.pooled_width, model.text.pooled_width),
    }
    for field, (given, taken) in found.items():
        if given != taken:
            raise UserError(
                f"config.model.{field}={taken}, but that of {what} is {given}: set it so, or name "
                f"another encoder"
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
    factor = space.factor if space and encodes_on_the_fly(source, space) else 1
    return config.model.image_size * factor


class _Unlabel(grain.transforms.Map):
    """For the unconditional model, whose one label is 0."""

    # Grain's own method says that it returns nothing.
    def map(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, element: dict[str, Any]
    ) -> dict[str, Any]:
        condition = element["condition"]
        return element | {"condition": condition | {"label": condition["label"] * 0}}


@dataclasses.dataclass(frozen=True)
class _Encode(grain.transforms.Map):
    """{"caption"} -> {"text", "pooled"} and those of the empty prompt, "null_…"."""

    encoder: TextEncoder
    null: dict[str, np.ndarray]

    # Grain's own method says that it returns nothing.
    def map(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, element: dict[str, Any]
    ) -> dict[str, Any]:
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


def abstract_batch(config: ConfigDict, model: nn.Module) -> dict[str, Any]:
    """Shapes and dtypes of a global batch as the training step takes it, without any data.

    Args:
      model: of `config.model`.

    Returns:
      {"x": [B, H, W, C], "index": [B], "condition": …} and what else the source's batches hold.

    Raises:
      UserError: the model takes a frame, which the source doesn't give.
    """
    batch_size, size = config.train.batch_size, config.model.image_size
    takes_frame = config_lib.model_config(config).condition_kind == "frame"
    kind = SOURCES.get(config.data.source, SourceKind())
    if takes_frame and not kind.extras:
        raise UserError(
            f"config.model.frame={config.model.frame!r}, but {config.data.source} gives none"
        )
    shape = (batch_size, size, size, config.model.channels)
    return {
        "x": jax.ShapeDtypeStruct(shape, np.float32),
        "index": jax.ShapeDtypeStruct((batch_size,), np.int32),
        "condition": model.example_condition(batch_size),
        **(kind.extras(config) if kind.extras else {}),
    }


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
    if config_lib.model_config(config).unconditional:
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

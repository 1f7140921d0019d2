"""The input pipeline: one seeded global order of examples, independent of hosts and workers."""

import dataclasses
from typing import Any

import flax.linen as nn
import grain
import jax
import numpy as np
from ml_collections import ConfigDict

from tp_jax import config as config_lib
from tp_jax.cli import signals
from tp_jax.data.held_out import Part, check_held_out, training_part
from tp_jax.data.source import Source
from tp_jax.data.sources import SOURCES, SourceKind, open_named
from tp_jax.data.sources.latents import LatentSource
from tp_jax.data.transforms import ReadExample
from tp_jax.latents.space import LatentSpace
from tp_jax.messages.errors import UserError
from tp_jax.models import TransformerConfig
from tp_jax.text import WITHOUT_WEIGHTS, TextEncoder, TextSpace, load_encoder

# Number of batches that are read ahead. Grain's default of 500 would exceed the memory of a host
# for encoded text.
PREFETCH = 8


def open_source(config: ConfigDict, space: LatentSpace | None = None) -> Source:
    """Open the source that `config.data` names, and check that it fits the config.

    Args:
      space: latent space of the autoencoder; None if the model diffuses pixels, or if it diffuses
        prepared latents and the autoencoder isn't loaded.

    Raises:
      UserError: the source is unknown, isn't on disk, or doesn't fit the model or the latent space.
        One message names all fields of the config that don't fit.

    Example:
      >>> config = config_lib.default()
      >>> config.model.update(image_size=8, channels=1, num_classes=10)
      >>> source = open_source(config)
      >>> len(source.records), source.condition_kind, source.class_names[:3]
      (1797, 'label', ('0', '1', '2'))
    """
    data = config.data
    kind = SOURCES.get(data.source)
    if kind and kind.from_config:
        source = kind.from_config(config)
    else:
        source = open_named("config.data", data.source, data.dir, data.split, data.columns)
    check_held_out(source, config)
    return check_source(source, config, space, for_training=True)


def check_source(
    source: Source, config: ConfigDict, space: LatentSpace | None, *, for_training: bool
) -> Source:
    """Check that a source fits the config, and return it with `config.data.background`.

    Args:
      source: the source.
      config: the whole config.
      space: latent space of the autoencoder; None if the source doesn't depend on it.
      for_training: whether the records must fill a batch of training.

    Raises:
      UserError: it doesn't fit the model or the latent space.
    """
    model = config_lib.model_config(config)
    source = dataclasses.replace(source, background=config.data.background)
    _check_condition_kind(source, config, model)
    _check_fields(source, config, model, space, for_training)
    if source.text_space:
        check_text(source.text_space, model, f"the text in {config.data.dir}")
    return source


# The condition that a model takes -> the conditions of a source that fit.
FITTING_CONDITIONS = {"label": ("label",), "frame": ("frame",), "text": ("caption", "text")}


def _no_frame_error(config: ConfigDict) -> UserError:
    return UserError(
        f"config.model.frame={config.model.frame!r}, but {config.data.source} gives no frame: set "
        f"it to '', or choose a source with frames"
    )


def _check_condition_kind(source: Source, config: ConfigDict, model: TransformerConfig) -> None:
    """Raise a UserError unless the source gives the condition that the model takes."""
    name, kind, wanted = config.data.source, config.model.kind, model.condition_kind
    if source.condition_kind in FITTING_CONDITIONS[wanted]:
        return
    if wanted == "label" and source.condition_kind == "frame":
        raise UserError(
            f"config.model.frame={config.model.frame!r}, but {name} gives a first frame: set it to "
            f"'channels' or 'tokens'"
        )
    if wanted == "frame":
        raise _no_frame_error(config)
    given = {"label": "labels", "frame": "frames"}.get(source.condition_kind, "captions")
    taken = {"label": "labels", "text": "text"}[wanted]
    remedy = {
        "label": "choose a source with labels, or a model that takes text",
        "text": "choose a source with captions",
    }[wanted]
    raise UserError(f"{name} has {given}, but a {kind} model takes {taken}: {remedy}")


def open_text(source: Source, config: ConfigDict) -> TextEncoder | None:
    """Load the encoder that the data workers run on captions; None if there are none to encode.

    Raises:
      UserError: the encoder needs weights and therefore can't run in workers, or doesn't fit the
        model.
    """
    if source.condition_kind != "caption":
        return None
    if config.text.encoder not in WITHOUT_WEIGHTS:
        raise UserError(
            f"the captions of {config.data.source} aren't encoded: encode them with python -m "
            f"tp_jax.prepare, which uses config.text.encoder={config.text.encoder!r}, and train "
            f'with config.data.source="latents"'
        )
    encoder = load_encoder(config.text)
    check_text(encoder.space, config_lib.model_config(config), "config.text.encoder")
    return encoder


def check_text(space: TextSpace, model: TransformerConfig, what: str) -> None:
    """Raise a UserError unless the shapes of encoded text fit the model.

    Args:
      space: shapes of the encoder's output.
      model: the model's config.
      what: name of the encoder or the data, for the error message.
    """
    if model.text is None:
        raise UserError(f"the model takes no text, but {what} has text: choose another model")
    found = {
        "text_tokens": (space.tokens, model.text.tokens),
        "text_width": (space.width, model.text.width),
        "pooled_width": (space.pooled_width, model.text.pooled_width),
    }
    for field, (given, taken) in found.items():
        if given != taken:
            raise UserError(
                f"config.model.{field}={taken}, but that of {what} is {given}: set it to {given}, "
                f"or choose another encoder"
            )


def _check_fields(
    source: Source,
    config: ConfigDict,
    model: TransformerConfig,
    space: LatentSpace | None,
    for_training: bool,
) -> None:
    """Raise one UserError that names all fields of the config that don't fit the source.

    Args:
      space, for_training: as for `check_source`.
    """
    name, classes = config.data.source, len(source.class_names)
    if space and isinstance(source, LatentSource):
        source.check_space(space)
    problems = _shape_problems(source, config, space)
    if model.condition_kind != "text" and model.classes not in (0, classes):
        has = f"{classes} classes (0 trains without classes)" if classes else "no classes: set 0"
        problems.append(f"config.model.num_classes={model.classes}, but {name} has {has}")
    if for_training:
        problems += filter(None, [_batch_size_problem(training_part(source, config), config)])
    if problems:
        raise UserError("; ".join(problems))


def _shape_problems(source: Source, config: ConfigDict, space: LatentSpace | None) -> list[str]:
    model, channels, problems = config.model, config.model.channels, []
    what = "latents" if isinstance(source, LatentSource) else "images"
    if space and encodes_on_the_fly(source, space):
        if space.channels != channels:
            problems.append(
                f"config.model.channels={channels}, but the latents of config.autoencoder.path "
                f"have {space.channels}"
            )
        channels = 3
    if source.channels != channels:
        problems.append(
            f"config.model.channels={model.channels}, but the {what} of {config.data.source} have "
            f"{source.channels}"
        )
    if source.image_size not in (None, example_size(source, config, space)):
        problems.append(
            f"config.model.image_size={model.image_size}, but the {what} of {config.data.source} "
            f"are {source.image_size} a side"
        )
    return problems


def _batch_size_problem(part: Part, config: ConfigDict) -> str:
    """Describe why a batch of training can't be filled; "" if it can."""
    count = len(part)
    if config.train.batch_size <= count:
        return ""
    rest = " that aren't held out" if config.validation.fraction else ""
    return (
        f"config.train.batch_size={config.train.batch_size} is larger than {config.data.source}, "
        f"which has {count} images{rest}: choose at most {count}"
    )


def encodes_on_the_fly(source: Source, space: LatentSpace | None) -> bool:
    """Return whether examples are pixels that the autoencoder encodes during training."""
    return space is not None and source.pixels


def example_size(source: Source, config: ConfigDict, space: LatentSpace | None) -> int:
    """Return the side of the pipeline's examples: in pixels if they are encoded on the fly."""
    factor = space.factor if space and encodes_on_the_fly(source, space) else 1
    return config.model.image_size * factor


class _ZeroLabel(grain.transforms.Map):
    """Set the label to 0, the only label of an unconditional model."""

    # Grain annotates this method with `-> None`.
    def map(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, element: dict[str, Any]
    ) -> dict[str, Any]:
        condition = element["condition"]
        return element | {"condition": condition | {"label": condition["label"] * 0}}


# As for `ReadExample`, the repr would hold the encoder.
@dataclasses.dataclass(frozen=True, repr=False)
class _EncodeCaption(grain.transforms.Map):
    """Encode a condition {"caption"} to {"text", "pooled", "null_text", "null_pooled"}.

    Attributes:
      null: the encoded empty prompt, "null_text" and "null_pooled".
    """

    encoder: TextEncoder
    null: dict[str, np.ndarray]

    # Grain annotates this method with `-> None`.
    def map(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, element: dict[str, Any]
    ) -> dict[str, Any]:
        found = self.encoder.encode([element["condition"]["caption"]])
        condition = {name: array[0] for name, array in found.items()}
        return element | {"condition": condition | self.null}


def _caption_transform(encoder: TextEncoder) -> _EncodeCaption:
    null = {f"null_{name}": array[0] for name, array in encoder.encode([""]).items()}
    return _EncodeCaption(encoder, null)


def read_part(part: Part, config: ConfigDict, size: int, *, flip: bool) -> ReadExample:
    """Return the transform that reads and decodes the records of a part.

    Args:
      part: the records.
      config: the whole config.
      size: from `example_size`.
      flip: mirror examples left to right with probability one half.
    """
    decode, skip = part.source.decoder(size, flip), config.data.skip_corrupt
    return ReadExample(part, decode, part.record_name, part.source.remedy, skip)


def example_transforms(
    config: ConfigDict, encoder: TextEncoder | None
) -> tuple[grain.transforms.Map, ...]:
    """Return the transforms of decoded examples: they encode captions, or remove labels.

    Args:
      config: the whole config.
      encoder: the encoder from `open_text`.
    """
    transforms: list[grain.transforms.Map] = []
    if encoder:
        transforms.append(_caption_transform(encoder))
    if config_lib.model_config(config).unconditional:
        transforms.append(_ZeroLabel())
    return tuple(transforms)


def example_conditions(
    source: Source, encoder: TextEncoder | None, num: int
) -> dict[str, np.ndarray]:
    """Return the conditions [num, …] of the source's first records, for sample grids in training.

    If the source has fewer than `num` records, they are repeated.

    Args:
      encoder: encodes captions; None if the conditions are no captions.
    """
    rows, decode = [], source.decoder(1, False)
    read = ReadExample(source.records, decode, source.record_name, source.remedy, skip_corrupt=True)
    encode = _caption_transform(encoder) if encoder else None
    for index in range(num):
        example = read.random_map(index % len(source.records), np.random.default_rng(index))
        example = encode.map(example) if encode else example
        rows.append(example["condition"])
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def abstract_batch(config: ConfigDict, model: nn.Module) -> dict[str, Any]:
    """Return the shapes and dtypes of a global batch for the train step, without opening data.

    Args:
      model: the model that `config.model` describes.

    Returns:
      {"x": [B, H, W, C], "index": [B], "condition": …} and the arrays of `SourceKind.extras`.

    Raises:
      UserError: the model takes a frame, but the source doesn't give one.
    """
    batch_size, size = config.train.batch_size, config.model.image_size
    takes_frame = config_lib.model_config(config).condition_kind == "frame"
    kind = SOURCES.get(config.data.source, SourceKind())
    if takes_frame and not kind.extras:
        raise _no_frame_error(config)
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
    """Return an endless iterator over this process's share of the batches.

    A batch is {"x": [B, H, W, C] float32, "condition": …}, where B is `config.train.batch_size`
    divided by the number of processes. Every epoch has a new order. The iterator's state is one
    global index, so that a run can resume with another number of hosts or workers and still get
    the same global batches.

    Args:
      space: as for `open_source`.
      encoder: the encoder from `open_text`.

    Raises:
      UserError: the batch size is larger than the number of records.

    Example:
      >>> config = config_lib.default()
      >>> config.model.update(image_size=8, channels=1, num_classes=10)
      >>> config.train.batch_size = 4
      >>> batch = next(make_iterator(open_source(config), config))
      >>> batch["x"].shape, batch["condition"]["label"].shape
      ((4, 8, 8, 1), (4,))
    """
    part = training_part(source, config)
    problem = _batch_size_problem(part, config)
    if problem:
        raise UserError(problem)
    read = read_part(part, config, example_size(source, config, space), flip=config.data.flip)
    dataset = grain.MapDataset.range(len(part)).seed(config.seed).shuffle().repeat()
    dataset = dataset.random_map(read)
    for transform in example_transforms(config, encoder):
        dataset = dataset.map(transform)
    workers = config.data.workers
    if workers:
        signals.before_workers()
    return iter(
        grain.experimental.ElasticIterator(
            dataset,
            config.train.batch_size,
            grain.sharding.ShardOptions(
                shard_index=jax.process_index(),
                shard_count=jax.process_count(),
                drop_remainder=True,
            ),
            read_options=grain.ReadOptions(num_threads=PREFETCH, prefetch_buffer_size=PREFETCH),
            multiprocessing_options=grain.MultiprocessingOptions(workers) if workers else None,
        )
    )

"""The input pipeline: one seeded, global, elastic order, whatever the hosts and workers."""

from collections.abc import Callable

import grain
import jax
from ml_collections import ConfigDict

from tp_jax.data.digits import open_digits
from tp_jax.data.source import Source
from tp_jax.data.tfds_images import open_tfds
from tp_jax.data.transforms import DecodeImage
from tp_jax.errors import UserError

# `config.data.source` -> function of (dir, split). `tfds/NAME` is any TFDS image data set.
SOURCES: dict[str, Callable[[str, str], Source]] = {"digits": open_digits}
TFDS_PREFIX = "tfds/"


def open_source(config: ConfigDict) -> Source:
    """Opens `config.data.source`.

    Raises:
      UserError: the source is unknown, isn't on disk, or doesn't fit the model.
    """
    name, data = config.data.source, config.data
    if name.startswith(TFDS_PREFIX):
        source = open_tfds(name.removeprefix(TFDS_PREFIX), data.dir, data.split)
    elif name in SOURCES:
        source = SOURCES[name](data.dir, data.split)
    else:
        raise UserError(
            f"config.data.source={name!r} is unknown: choose one of {', '.join(SOURCES)}, "
            f"or {TFDS_PREFIX}NAME"
        )
    _check_fit(source, config)
    return source


def _check_fit(source: Source, config: ConfigDict) -> None:
    model = config.model
    if source.channels != model.channels:
        raise UserError(
            f"config.model.channels={model.channels}, but the images of {config.data.source} "
            f"have {source.channels}"
        )
    if source.image_size not in (None, model.image_size):
        raise UserError(
            f"config.model.image_size={model.image_size}, but the images of "
            f"{config.data.source} are {source.image_size} a side"
        )
    if model.kind != "dit":
        raise UserError(f"{config.data.source} has labels, but a {model.kind} model takes text")
    if model.num_classes not in (0, len(source.class_names)):
        raise UserError(
            f"config.model.num_classes={model.num_classes}, but {config.data.source} has "
            f"{len(source.class_names)} classes (0 trains without classes)"
        )


class _Unlabel(grain.transforms.Map):
    """For the unconditional model, whose one label is 0."""

    def map(self, element: dict) -> dict:
        return element | {"condition": {"label": element["condition"]["label"] * 0}}


def make_iterator(source: Source, config: ConfigDict) -> grain.DatasetIterator:
    """Batches {"x": [B, H, W, C] float32, "condition": …} of this process's share, for ever.

    Every epoch is shuffled anew. The iterator's state is one global index, so a run may go on
    with other numbers of hosts or workers and sees the same global batches.
    """
    if len(source.records) < config.train.batch_size:
        raise UserError(
            f"config.train.batch_size={config.train.batch_size} is larger than "
            f"{config.data.source}, which has {len(source.records)} images: choose fewer"
        )
    decode = DecodeImage(config.model.image_size, source.channels, config.data.flip)
    dataset = grain.MapDataset.source(source.records).seed(config.seed).shuffle().repeat()
    dataset = dataset.random_map(decode)
    if config.model.num_classes == 0:
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
            multiprocessing_options=grain.MultiprocessingOptions(workers) if workers else None,
        )
    )

"""The examples of validation: records that training never sees, decoded in a fixed way."""

import dataclasses
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from tp_jax.data.held_out import (
    Part,
    check_held_out,
    held_out_part,
    shuffled,
    validation_place,
)
from tp_jax.data.pipeline import (
    check_source,
    encodes_on_the_fly,
    example_size,
    example_transforms,
    read_part,
)
from tp_jax.data.source import SEEN, Source
from tp_jax.data.sources import open_named
from tp_jax.data.transforms import ReadExample
from tp_jax.latents.space import LatentSpace
from tp_jax.messages.errors import UserError
from tp_jax.text import TextEncoder


@dataclasses.dataclass(frozen=True)
class ValidationExamples:
    """N examples that a model is validated on; example i is the same in every run.

    Attributes:
      count: number N of examples.
      read: reads and decodes the record with a given index, without augmentation.
      transforms: what follows decoding, such as encoding a caption.
      seed: `config.validation.seed`; with the index of an example, it determines what decoding
        draws: one of several captions, or the noise of a latent.
      encoded: whether the examples are pixels that an autoencoder has to encode for the model.
    """

    count: int
    read: ReadExample
    transforms: tuple[Any, ...]
    seed: int
    encoded: bool

    def batch(self, indices: np.ndarray) -> dict[str, Any]:
        """Return the examples with these indices [n]: {"x": [n, H, W, C], "condition": …, …}."""
        rows = []
        for index in indices.tolist():
            example = self.read.random_map(index, np.random.default_rng([self.seed, index]))
            for transform in self.transforms:
                example = transform.map(example)
            rows.append(example)
        return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)


def open_validation(
    source: Source,
    config: ConfigDict,
    space: LatentSpace | None = None,
    encoder: TextEncoder | None = None,
) -> dict[str, ValidationExamples]:
    """Open the validation examples that `config.validation` describes.

    Args:
      source: the training source, from `open_source`.
      config: the whole config.
      space: as for `open_source`.
      encoder: the encoder from `open_text`.

    Returns:
      The examples by part. `SEEN` is data like those of training, held out from it; a source of
      generated examples may also have `UNSEEN`: what training holds out on purpose, such as
      combinations of words.

    Raises:
      UserError: nothing is held out, or the records can't be opened or don't fit the model.

    Example:
      >>> from tp_jax import config as config_lib
      >>> from tp_jax.data import open_source
      >>> config = config_lib.default()
      >>> config.model.update(image_size=8, channels=1, num_classes=10)
      >>> config.validation.fraction = 0.1
      >>> examples = open_validation(open_source(config), config)[SEEN]
      >>> examples.batch(np.arange(4))["x"].shape
      (4, 8, 8, 1)
    """
    check_held_out(source, config)
    fields = config.validation
    generated = source.validation_sources(fields.seed)
    parts = {name: Part(other, range(len(other.records))) for name, other in generated.items()}
    if fields.fraction:
        parts = {SEEN: held_out_part(source, config)}
    elif fields.split or fields.dir:
        parts = {SEEN: shuffled(_open_other(source, config, space), config)}
    if not parts:
        raise UserError(
            f"nothing of {config.data.source} was held out from training: train with "
            f"config.validation.fraction=0.1, or name other records in config.validation.split "
            f"or .dir"
        )
    size, transforms = example_size(source, config, space), example_transforms(config, encoder)
    return {
        name: ValidationExamples(
            count=min(fields.num, len(part)),
            read=read_part(part, config, size, flip=False),
            transforms=transforms,
            seed=fields.seed,
            encoded=encodes_on_the_fly(source, space),
        )
        for name, part in parts.items()
    }


def _open_other(source: Source, config: ConfigDict, space: LatentSpace | None) -> Source:
    """Open the split or folder that `config.validation` names, and compare it with the training's.

    Raises:
      UserError: it can't be opened, has other classes, or has records of training.
    """
    dir, split = validation_place(config)
    section = "config.validation"
    other = open_named(section, config.data.source, dir, split, config.data.columns)
    other = check_source(other, config, space, for_training=False)
    if other.class_names != source.class_names:
        raise UserError(
            f"{section}: its {len(other.class_names)} classes aren't the {len(source.class_names)} "
            f"of training, in the same order: name data with the same classes"
        )
    if other.text_space != source.text_space:
        raise UserError(
            f"{section}: its captions were encoded by another encoder than those of training: "
            f"encode both with the same one"
        )
    # The default names are numbers, which say nothing about what the records are.
    named = type(source).record_name is not Source.record_name
    if named and other.record_name(0) in map(source.record_name, range(len(source.records))):
        raise UserError(
            f"{section}: training reads {other.record_name(0)} too: name records that it doesn't "
            f"read, or set {section}.fraction"
        )
    return other

"""Scores of what a generator draws, without writing the images: in training, and in sweeps."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath

from tp_jax.evals.adm.features import Extractor, load_extractor
from tp_jax.evals.adm.reference import Reference, check_reference, complete, read_reference
from tp_jax.evals.adm.scores import Scores, evaluate
from tp_jax.latents.codec import Codec, Pooling
from tp_jax.messages.errors import UserError
from tp_jax.models import TransformerConfig
from tp_jax.pictures.grids import to_uint8
from tp_jax.pictures.reading import to_rgb
from tp_jax.sampling.generator import Generator, choose_labels


@dataclasses.dataclass(frozen=True)
class Scorer:
    """The ADM suite against one reference, whose own features are computed once."""

    reference: Reference
    extractor: Extractor

    def score(
        self, generator: Generator, params: Any, num: int, num_classes: int, seed: int
    ) -> Scores:
        """Draws `num` samples, going round the classes, and scores them as they come."""
        labels = choose_labels((), num, num_classes)

        def images() -> Iterator[np.ndarray]:
            for batch in generator.batches(params, {"label": labels}, seed):
                yield to_rgb(to_uint8(batch))

        return evaluate(images(), num, self.reference, self.extractor)


def picture_size(model: TransformerConfig, codec: Codec | Pooling | None) -> tuple[int, int]:
    """Height and width of the pictures that a model draws.

    Raises:
      UserError: it draws latents that nothing decodes, and those can't be scored.
    """
    side = model.image_size
    if codec:
        return side * codec.space.factor, side * codec.space.factor
    if model.channels not in (1, 3):
        raise UserError(
            f"a model of {model.channels} channels draws latents, which can't be scored: name the "
            f"autoencoder that decodes them in config.autoencoder.path"
        )
    return side, side


def load_scorer(
    reference: str, inception: str, protocol: str, batch_size: int, size: tuple[int, int]
) -> Scorer:
    """A scorer of images of `size`, height and width, on all devices here.

    Args:
      reference, inception: a file, and a folder of converted weights.

    Raises:
      UserError: either isn't there, or the reference doesn't fit the other three.
    """
    extractor = load_extractor(epath.Path(inception), protocol, batch_size)
    found = read_reference(epath.Path(reference))
    check_reference(found, extractor, size)
    return Scorer(complete(found, extractor), extractor)

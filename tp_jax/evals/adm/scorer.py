"""Scores of what a generator draws, without writing the images: in training, and in sweeps."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath

from tp_jax.evals.adm.features import Extractor, load_extractor
from tp_jax.evals.adm.reference import Reference, check_reference, complete, read_reference
from tp_jax.evals.adm.scores import Scores, evaluate
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

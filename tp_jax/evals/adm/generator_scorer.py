"""Score the images of a generator without writing them to disk, in training and in sweeps."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath

from tp_jax.evals.adm.features import Extractor, load_extractor
from tp_jax.evals.adm.reference import (
    Reference,
    check_reference,
    complete_reference,
    read_reference,
)
from tp_jax.evals.adm.scores import Scores, score_batches
from tp_jax.pictures.grids import to_uint8
from tp_jax.pictures.reading import to_rgb
from tp_jax.sampling.generator import Generator, choose_labels


@dataclasses.dataclass(frozen=True)
class Scorer:
    """Scores generated images against one reference; the reference's features are computed once."""

    reference: Reference
    extractor: Extractor

    def score(
        self, generator: Generator, params: Any, num: int, num_classes: int, seed: int
    ) -> Scores:
        """Generate `num` samples, cycling through the classes, and score them batch by batch.

        Args:
          generator: the generator.
          params: parameters of its model.
          num: number of samples.
          num_classes: number of classes.
          seed: seed of the samples.
        """
        labels = choose_labels((), num, num_classes)

        def images() -> Iterator[np.ndarray]:
            for batch in generator.batches(params, {"label": labels}, seed):
                yield to_rgb(to_uint8(batch))

        return score_batches(images(), num, self.reference, self.extractor)


def load_scorer(
    reference: str, inception: str, protocol: str, batch_size: int, size: tuple[int, int]
) -> Scorer:
    """Load the network and the reference of a scorer, on all local devices.

    Args:
      reference: file or folder that `read_reference` accepts.
      inception: folder of converted Inception weights.
      protocol: key of `PROTOCOLS`.
      batch_size: images per batch.
      size: height and width of the generated images.

    Raises:
      UserError: the reference or the weights don't exist, or the reference doesn't fit the
        protocol, the weights or the image size.
    """
    extractor = load_extractor(epath.Path(inception), protocol, batch_size)
    found = read_reference(epath.Path(reference))
    check_reference(found, extractor, size)
    return Scorer(complete_reference(found, extractor), extractor)

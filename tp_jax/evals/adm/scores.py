"""The ADM suite: FID, sFID, Inception Score, precision and recall of images.

Source: Dhariwal and Nichol 2021, arXiv 2105.05233, and the evaluator of openai/guided-diffusion.
"""

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np

from tp_jax.evals.adm.features import PROTOCOLS, Extractor
from tp_jax.evals.adm.manifold import precision_recall
from tp_jax.evals.adm.reference import (
    Gaussian,
    Measured,
    Reference,
    Statistics,
    check_reference,
    complete,
    measure,
)
from tp_jax.evals.adm.statistics import frechet_distance
from tp_jax.messages.errors import UserError

NEIGHBOURS = 3
SPLIT = 5000  # images of an Inception Score


@dataclasses.dataclass(frozen=True)
class Scores:
    """The scores of one set of images, and what they depend on; None is not defined, see notes.

    Attributes:
      count: of the images.
      reference_count: of the images behind the reference's FID statistics, if its file says.
      notes: what to know before these numbers are compared with others.
    """

    fid: float | None
    sfid: float | None
    inception_score: float | None
    precision: float | None
    recall: float | None
    count: int
    protocol: str
    inception: str
    reference: str | None
    reference_count: int | None
    notes: tuple[str, ...]


def evaluate(
    images: Iterator[np.ndarray], count: int, reference: Reference, extractor: Extractor
) -> Scores:
    """Scores images as they come, as from a generator in training.

    Args:
      images: uint8 batches [?, H, W, 3] of any sizes.
      count: how many are expected, for the progress bar.
      reference: where this is called again and again, one that `check_reference` and `complete`
        have seen, so that its own images aren't read every time.

    Raises:
      UserError: the reference doesn't fit the first images (nothing is computed then), or there
        are fewer than two.
    """
    first = next(images, None)
    if first is None:
        raise UserError("there are no samples; give 2 or more")
    check_reference(reference, extractor, first.shape[1:3])
    statistics = measure(itertools.chain([first], images), count, extractor, "features of samples")
    return compare(statistics, complete(reference, extractor), extractor)


def compare(sample: Measured, reference: Reference | None, extractor: Extractor) -> Scores:
    """Scores from statistics; without a reference the Inception Score alone."""
    protocol, notes = PROTOCOLS[extractor.protocol], _count_notes("samples", sample)
    if sample.count % SPLIT:
        notes.append(
            f"Inception Score: its last split has {sample.count % SPLIT} images, not {SPLIT}"
        )
    fid = sfid = precision = recall = None
    known = reference.statistics if reference else None
    if reference and known:
        notes += _count_notes("reference", known)
        if reference.protocol is None and reference.images is None:
            notes.append(f"{reference.name} doesn't say which protocol made it")
        fid, sfid = _distance(sample.pool, known.pool), _distance(sample.spatial, known.spatial)
        if known.features is None:
            notes.append(f"precision, recall: {reference.name} holds neither images nor features")
        elif min(len(sample.features), len(known.features)) > NEIGHBOURS:
            precision, recall = precision_recall(
                known.features, sample.features, NEIGHBOURS, half=protocol.half
            )
        else:
            notes.append(f"precision, recall: need more than {NEIGHBOURS} images on both sides")
        if sfid is None:
            missing = f"{reference.name} has no spatial statistics"
            missing = missing if protocol.spatial else f"not defined by {extractor.protocol}"
            notes.append(f"sFID: {missing}")
    return Scores(
        fid=fid,
        sfid=sfid,
        inception_score=sample.inception_score,
        precision=precision,
        recall=recall,
        count=sample.count,
        protocol=extractor.protocol,
        inception=extractor.identity,
        reference=reference.name if reference else None,
        reference_count=known.count if known else None,
        notes=tuple(notes),
    )


def _distance(a: Gaussian | None, b: Gaussian | None) -> float | None:
    return frechet_distance(a.mean, a.covariance, b.mean, b.covariance) if a and b else None


def _count_notes(what: str, statistics: Statistics) -> list[str]:
    width = len(statistics.pool.mean)
    if statistics.count is None or statistics.count > width:
        return []
    return [
        f"{what}: {statistics.count} images for {width} features, so the covariance has no full "
        f"rank and FID is too high; published numbers are of 50,000"
    ]

"""FID, sFID, Inception Score, precision and recall from image batches or from their statistics.

Source: Dhariwal and Nichol 2021, arXiv 2105.05233, and the evaluator of openai/guided-diffusion.
"""

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np

from tp_jax.evals.adm.features import PROTOCOLS, Extractor
from tp_jax.evals.adm.manifold import precision_recall
from tp_jax.evals.adm.metrics import frechet_distance
from tp_jax.evals.adm.reference import (
    Gaussian,
    Measured,
    Reference,
    Statistics,
    check_reference,
    complete_reference,
    compute_statistics,
)
from tp_jax.messages.errors import UserError

NEIGHBOURS = 3  # k of the k-nearest-neighbour balls of precision and recall
SPLIT_SIZE = 5000  # images per split of the Inception Score


@dataclasses.dataclass(frozen=True)
class Scores:
    """Scores of one set of images, and the settings they were computed with.

    A score that isn't defined is None, and `notes` gives the reason.

    Attributes:
      precision_counts: number of samples and of reference images that precision and recall were
        computed from. Both scores depend on these numbers.
      count: number of images scored.
      protocol: key of `PROTOCOLS`.
      inception: SHA-256 of the Inception weights.
      reference: file name of the reference.
      reference_count: number of images that the reference's FID statistics were computed from;
        None if its file doesn't record it.
      notes: caveats for comparing these numbers with published ones.
    """

    fid: float | None
    sfid: float | None
    inception_score: float | None
    precision: float | None
    recall: float | None
    precision_counts: tuple[int, int] | None
    count: int
    protocol: str
    inception: str
    reference: str | None
    reference_count: int | None
    notes: tuple[str, ...]


def score_batches(
    images: Iterator[np.ndarray], count: int, reference: Reference, extractor: Extractor
) -> Scores:
    """Score batches of images as an iterator yields them, for example from a generator in training.

    Args:
      images: uint8 batches [?, H, W, 3] of any sizes.
      count: expected number of images, for the progress bar.
      reference: the reference. For repeated calls pass the result of `complete_reference`, so that
        the reference's own images aren't read every time.
      extractor: the feature network.

    Raises:
      UserError: the reference doesn't fit the first batch (checked before anything is computed), or
        there are fewer than two images.
    """
    first = next(images, None)
    if first is None:
        raise UserError("there are no samples: give at least 2")
    check_reference(reference, extractor, first.shape[1:3])
    statistics = compute_statistics(
        itertools.chain([first], images), count, extractor, "features of samples"
    )
    return score_statistics(statistics, complete_reference(reference, extractor), extractor)


def score_statistics(sample: Measured, reference: Reference | None, extractor: Extractor) -> Scores:
    """Score computed statistics; without a reference, only the Inception Score is defined."""
    protocol, notes = PROTOCOLS[extractor.protocol], _count_notes("samples", sample)
    if sample.count % SPLIT_SIZE:
        notes.append(
            f"Inception Score: the last split has {sample.count % SPLIT_SIZE} images instead of "
            f"{SPLIT_SIZE}"
        )
    fid = sfid = precision = recall = counts = None
    known = reference.statistics if reference else None
    if reference and known:
        notes += _count_notes("reference", known)
        if reference.protocol is None and reference.images is None:
            notes.append(f"{reference.name} doesn't record the protocol it was made with")
        fid, sfid = _distance(sample.pool, known.pool), _distance(sample.spatial, known.spatial)
        if known.features is None:
            notes.append(f"precision, recall: {reference.name} has neither images nor features")
        elif min(len(sample.features), len(known.features)) > NEIGHBOURS:
            counts = len(sample.features), len(known.features)
            precision, recall = precision_recall(
                known.features, sample.features, NEIGHBOURS, half=protocol.half
            )
        else:
            notes.append(
                f"precision, recall: need more than {NEIGHBOURS} samples and more than "
                f"{NEIGHBOURS} reference images"
            )
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
        precision_counts=counts,
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
        f"{what}: {statistics.count} images for {width} features, so the covariance is "
        f"rank-deficient and FID is biased upward; published numbers use 50,000 images"
    ]

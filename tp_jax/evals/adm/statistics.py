"""Scores from features alone. N rows, D features, K classes."""

import dataclasses
from typing import Any, cast

import numpy as np
import scipy.linalg


@dataclasses.dataclass(frozen=True)
class Moments:
    """Of the rows seen so far: their count, mean [D] and scatter [D, D], float64.

    The scatter is the sum of (x - mean)(x - mean)ᵀ.
    """

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    def covariance(self) -> np.ndarray:
        """[D, D] float64, divided by count - 1; there must be two rows or more."""
        return self.scatter / (self.count - 1)


def moments(rows: np.ndarray) -> Moments:
    """The moments of rows [N, D] of any float type, N ≥ 1."""
    rows = np.asarray(rows, np.float64)
    mean = rows.mean(axis=0)
    return Moments(len(rows), mean, (rows - mean).T @ (rows - mean))


def merge(a: Moments, b: Moments) -> Moments:
    """The moments of the rows of both; means are subtracted, never sums of squares.

    Source: Chan, Golub and LeVeque 1983, "Algorithms for computing the sample variance".
    """
    count, shift = a.count + b.count, b.mean - a.mean
    between = np.outer(shift, shift) * (a.count * b.count / count)
    return Moments(count, a.mean + shift * (b.count / count), a.scatter + b.scatter + between)


def frechet_distance(
    mean1: np.ndarray, covariance1: np.ndarray, mean2: np.ndarray, covariance2: np.ndarray
) -> float:
    """|mean1 - mean2|² + tr(covariance1 + covariance2 - 2·(covariance1·covariance2)^½).

    With covariance = R·Rᵀ the last trace is the sum of the singular values of R1ᵀ·R2, which
    loses no digits where fewer rows than features leave the covariances without full rank.

    Args:
      mean1, mean2: [D] float64.
      covariance1, covariance2: [D, D] float64, symmetric.

    Source: Dowson and Landau 1982; FID as in Heusel et al. 2017, arXiv 1706.08500, eq. 6.
    """
    shift = mean1 - mean2
    singular = scipy.linalg.svdvals(_root(covariance1).T @ _root(covariance2))
    cross = cast(np.ndarray, singular).sum()
    return float(shift @ shift + np.trace(covariance1) + np.trace(covariance2) - 2 * cross)


def _root(covariance: np.ndarray) -> np.ndarray:
    """R [D, rank] with R·Rᵀ = covariance, by a Cholesky decomposition with pivots."""
    # Its functions are there only when it is imported.
    lapack: Any = scipy.linalg.lapack
    factor, pivots, rank, _ = lapack.dpstrf(covariance, lower=1)
    root = np.empty((len(covariance), rank))
    root[pivots - 1] = np.tril(factor)[:, :rank]
    return root


def inception_score(logits: np.ndarray, split_size: int = 5000) -> float:
    """Mean over splits of exp(mean KL(p(class | image), p(class))).

    Args:
      logits: [N, K], in the order of the images; the last split may be shorter.

    Source: Salimans et al. 2016, arXiv 1606.03498; splits as in openai/guided-diffusion.
    """
    scores = []
    for start in range(0, len(logits), split_size):
        part = np.asarray(logits[start : start + split_size], np.float64)
        part = part - part.max(axis=1, keepdims=True)
        log_p = part - np.log(np.exp(part).sum(axis=1, keepdims=True))
        p = np.exp(log_p)
        # A class of which every probability underflows to 0 adds 0.
        log_mean = np.log(np.maximum(p.mean(axis=0), np.finfo(np.float64).tiny))
        scores.append(np.exp((p * (log_p - log_mean)).sum(axis=1).mean()))
    return float(np.mean(scores))

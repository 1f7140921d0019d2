"""FID, Inception Score and the moments they need, from features. N images, D features, K classes.

NumPy in float64; nothing here reads files or runs a network.
"""

import dataclasses
from typing import Any, cast

import numpy as np
import scipy.linalg


@dataclasses.dataclass(frozen=True)
class Moments:
    """Count, mean [D] and scatter matrix [D, D] of the rows seen so far, float64.

    The scatter matrix is the sum of (x - mean)(x - mean)ᵀ over the rows x.
    """

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    def covariance(self) -> np.ndarray:
        """Return the unbiased covariance [D, D] float64; needs at least two rows."""
        return self.scatter / (self.count - 1)


def moments(rows: np.ndarray) -> Moments:
    """Return the moments of rows [N, D] of any float type, N ≥ 1.

    Example:
      >>> moments(np.array([[0.0, 0.0], [2.0, 4.0]])).covariance().tolist()
      [[2.0, 4.0], [4.0, 8.0]]
    """
    rows = np.asarray(rows, np.float64)
    mean = rows.mean(axis=0)
    return Moments(len(rows), mean, (rows - mean).T @ (rows - mean))


def merge(a: Moments, b: Moments) -> Moments:
    """Return the moments of the rows of `a` and `b` together.

    Subtracts means instead of sums of squares, which would cancel catastrophically.

    Source: Chan, Golub and LeVeque 1983, "Algorithms for computing the sample variance".

    Example:
      >>> merge(moments(np.array([[0.0], [2.0]])), moments(np.array([[4.0]]))).mean.tolist()
      [2.0]
    """
    count, shift = a.count + b.count, b.mean - a.mean
    between = np.outer(shift, shift) * (a.count * b.count / count)
    return Moments(count, a.mean + shift * (b.count / count), a.scatter + b.scatter + between)


def frechet_distance(
    mean1: np.ndarray, covariance1: np.ndarray, mean2: np.ndarray, covariance2: np.ndarray
) -> float:
    """|mean1 - mean2|² + tr(covariance1 + covariance2 - 2·(covariance1·covariance2)^½).

    With covariance = R·Rᵀ, the trace of the square root is the sum of the singular values of
    R1ᵀ·R2. This stays accurate when the covariances are rank-deficient, as they are with fewer
    rows than features.

    Args:
      mean1, mean2: [D] float64.
      covariance1, covariance2: [D, D] float64, symmetric.

    Source: Dowson and Landau 1982; FID as in Heusel et al. 2017, arXiv 1706.08500, eq. 6.

    Example:
      >>> round(frechet_distance(np.zeros(2), np.eye(2), np.array([3.0, 4.0]), 4 * np.eye(2)), 6)
      27.0
    """
    shift = mean1 - mean2
    singular = scipy.linalg.svdvals(_root(covariance1).T @ _root(covariance2))
    cross = cast(np.ndarray, singular).sum()
    return float(shift @ shift + np.trace(covariance1) + np.trace(covariance2) - 2 * cross)


def _root(covariance: np.ndarray) -> np.ndarray:
    """Return R [D, rank] with R·Rᵀ = covariance, by a Cholesky decomposition with pivoting."""
    # Typed as Any because scipy creates the LAPACK functions at import, where no type checker sees
    # them.
    lapack: Any = scipy.linalg.lapack
    factor, pivots, rank, _ = lapack.dpstrf(covariance, lower=1)
    root = np.empty((len(covariance), rank))
    root[pivots - 1] = np.tril(factor)[:, :rank]
    return root


def inception_score(logits: np.ndarray, split_size: int = 5000) -> float:
    """Return the mean over splits of exp(mean KL(p(class | image) ‖ p(class))).

    Args:
      logits: [N, K], in the order of the images.
      split_size: images per split; the last split may be smaller.

    Source: Salimans et al. 2016, arXiv 1606.03498; splits as in openai/guided-diffusion.

    Example:
      >>> inception_score(np.zeros((4, 10)))
      1.0
    """
    scores = []
    for start in range(0, len(logits), split_size):
        part = np.asarray(logits[start : start + split_size], np.float64)
        part = part - part.max(axis=1, keepdims=True)
        log_p = part - np.log(np.exp(part).sum(axis=1, keepdims=True))
        p = np.exp(log_p)
        # The clamp makes a class whose probability underflows to 0 in every image contribute 0.
        log_mean = np.log(np.maximum(p.mean(axis=0), np.finfo(np.float64).tiny))
        scores.append(np.exp((p * (log_p - log_mean)).sum(axis=1).mean()))
    return float(np.mean(scores))

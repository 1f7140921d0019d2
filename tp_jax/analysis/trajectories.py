"""How tokens move over the latent steps, what they contain, and how alike the experts are.

S sampler steps, T latent steps, B samples, N tokens, D width, M experts, r rank, K tokens that were
chosen. `moves`, `ratios` and `together` take NumPy and JAX arrays.
"""

from typing import Any

import numpy as np

_SMALL = 1e-12


def moves(tokens: Any) -> Any:
    """Return the relative moves |ã^t - ã^{t-1}| / |ã^{t-1}| for t = 1 … T-1.

    Args:
      tokens: [..., T, B, N, D] tokens ã⁰ … ã^{T-1} that enter the latent steps.

    Returns:
      [..., T-1, B, N].
    """
    return _norm(_steps(tokens)) / (_norm(tokens[..., :-1, :, :, :]) + _SMALL)


def ratios(tokens: Any) -> Any:
    """Return the ratios |ã^{t+1} - ã^t| / |ã^t - ã^{t-1}| of successive moves.

    Below 1 the recursion converges. NaN for a token whose earlier move has the length 0.

    Args:
      tokens: [..., T, B, N, D].

    Returns:
      [..., T-2, B, N].
    """
    lengths = _norm(_steps(tokens))
    xp = lengths.__array_namespace__()
    before, after = lengths[..., :-1, :, :], lengths[..., 1:, :, :]
    return xp.where(before > 0, after / xp.where(before > 0, before, 1), xp.nan)


def together(tokens: Any) -> Any:
    """Return the mean cosine between the displacements ã^{T-1} - ã⁰ of a sample's tokens.

    It is 1 if all tokens of a sample move in the same direction, and about 0 if their directions
    have nothing in common. Each token is compared with all others of its sample.

    Args:
      tokens: [..., T, B, N, D].

    Returns:
      [..., B].
    """
    displacement = tokens[..., -1, :, :, :] - tokens[..., 0, :, :, :]
    directions = displacement / (_norm(displacement)[..., None] + _SMALL)
    num = directions.shape[-2]
    # The squared length of the sum has all pairs, and each token with itself.
    pairs = (directions.sum(-2) ** 2).sum(-1) - (directions**2).sum((-2, -1))
    return pairs / max(num * (num - 1), 1)


def _steps(tokens: Any) -> Any:
    return tokens[..., 1:, :, :, :] - tokens[..., :-1, :, :, :]


def _norm(vectors: Any) -> Any:
    xp = vectors.__array_namespace__()
    return xp.sqrt((vectors**2).sum(-1))


def principal_components(points: np.ndarray, num: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Project points onto their directions of largest variance.

    The sign of each direction is such that its largest coefficient is positive.

    Args:
      points: [n, D].
      num: number of directions, at most min(n, D).

    Returns:
      Projections [n, num], and the share of the variance that each direction explains [num].
    """
    centred = np.asarray(points, np.float64) - np.mean(points, axis=0, dtype=np.float64)
    _, lengths, directions = np.linalg.svd(centred, full_matrices=False)
    largest = np.abs(directions[:num]).argmax(axis=1)
    signs = np.sign(directions[np.arange(num), largest])
    explained = lengths[:num] ** 2 / max((lengths**2).sum(), _SMALL)
    return centred @ (signs[:, None] * directions[:num]).T, explained


def content_clusters(tokens: np.ndarray, clusters: int, seed: int = 0) -> np.ndarray:
    """Group tokens by their content.

    Tokens are standardised first (mean 0 and variance 1 of every feature) within each sampler step
    and latent step, because features follow the timestep through adaLN: a cluster is then what
    distinguishes tokens at the same time, not the time itself.

    Args:
      tokens: [K, S, T, D], the same K tokens at every step.
      clusters: number of clusters.
      seed: seed of k-means.

    Returns:
      The cluster of each token at each step, [K, S, T] int32.
    """
    tokens = np.asarray(tokens, np.float32)
    from sklearn.cluster import MiniBatchKMeans  # Imported here because it is slow.

    deviation = tokens.std(axis=0)
    standard = (tokens - tokens.mean(axis=0)) / np.where(deviation > 0, deviation, 1)
    points = standard.reshape(-1, tokens.shape[-1])
    means = MiniBatchKMeans(clusters, random_state=seed, batch_size=4096)
    return means.fit_predict(points).reshape(tokens.shape[:-1]).astype(np.int32)


# Tokens whose Δ are in memory at a time.
_CHUNK = 64


def similarity(lora_a: np.ndarray, lora_b: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    """Return the mean cosine of the experts' ΔQ, ΔK and ΔV on the same tokens.

    Args:
      lora_a: [M, D, 3, r].
      lora_b: [M, 3, r, D].
      inputs: [n, D], what the experts multiply: Mod(LN(ã)).

    Returns:
      [3, M, M] float64, for Q, K and V. NaN where an expert gives Δ = 0 for all tokens, as an
      untrained one does.
    """
    total, count = np.zeros((3, len(lora_a), len(lora_a))), np.zeros((3, len(lora_a), len(lora_a)))
    for start in range(0, len(inputs), _CHUNK):
        low = np.einsum("nd,mdcr->cnmr", inputs[start : start + _CHUNK], lora_a)
        delta = np.einsum("cnmr,mcrd->cnmd", low, lora_b)
        length = np.linalg.norm(delta, axis=-1, keepdims=True)
        direction = np.divide(delta, length, out=np.zeros_like(delta), where=length > 0)
        moved = (length[..., 0] > 0).astype(np.float64)
        total += np.einsum("cnmd,cnkd->cmk", direction, direction)
        count += np.einsum("cnm,cnk->cmk", moved, moved)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)

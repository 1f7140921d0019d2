"""Statistics of the gate's choices: entropy, kept experts, use, collapse.

S sampler steps, T latent steps, B samples, N vision tokens, M experts, G groups. The functions take
the arrays of a trace, `tp_jax.Model.trace`. Those that say so take NumPy and JAX arrays alike, so
that the same code runs on a device.
"""

from typing import Any

import numpy as np

# A share of the tokens below this part of 1/M makes an expert dead.
DEAD = 0.1


def without_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Return softmax(logits) from the gate's probabilities softmax(logits / temperature).

    Args:
      probabilities: [..., M], such as `Routing.probabilities`.
      temperature: `config.model.thinking.temperature`.

    Returns:
      [..., M] float64.

    Example:
      >>> without_temperature(np.array([0.5, 0.25, 0.25]), 2.0).round(3).tolist()
      [0.667, 0.167, 0.167]
    """
    logits = temperature * np.log(np.maximum(probabilities.astype(np.float64), 1e-300))
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def entropy(probabilities: Any) -> Any:
    """Return the entropy of distributions over the last axis: [..., M] -> [...], in nats.

    Takes NumPy and JAX arrays.

    Example:
      >>> entropy(np.array([[0.5, 0.5], [1.0, 0.0]])).round(3).tolist()
      [0.693, 0.0]
    """
    xp = probabilities.__array_namespace__()
    logarithms = xp.log(xp.where(probabilities > 0, probabilities, 1))
    return -(probabilities * logarithms).sum(-1) + 0.0


def kept(experts: np.ndarray, num: int | None = None) -> np.ndarray:
    """Return the share of tokens that keep their expert from one latent step to the next.

    Args:
      experts: [S, T, B, N] integers.
      num: number M of experts, needed if tokens halt. Halted tokens, which have the expert M, don't
        count.

    Returns:
      [S, T-1] float64; NaN where all tokens have halted.
    """
    same = experts[:, 1:] == experts[:, :-1]
    live = np.ones(same.shape, bool) if num is None else experts[:, 1:] < num
    flat = (*same.shape[:2], -1)
    return mean_of_live(same.reshape(flat), live.reshape(flat))


def mean_of_live(values: Any, live: Any) -> Any:
    """Return the mean over the tokens that are live: [..., N] -> [...], NaN where none is.

    Takes NumPy and JAX arrays.

    Args:
      values: [..., N] of the tokens.
      live: [..., N] bool, False for tokens that have halted.

    Example:
      >>> mean_of_live(np.array([1.0, 3.0, 8.0]), np.array([True, True, False])).item()
      2.0
    """
    xp = live.__array_namespace__()
    count = live.sum(-1)
    mean = xp.where(live, values, 0).sum(-1) / xp.maximum(count, 1)
    return xp.where(count > 0, mean, xp.nan)


def latent_steps_used(experts: np.ndarray, num: int) -> np.ndarray:
    """Return the number of latent steps of each token, of those that may halt.

    Args:
      experts: [S, T, B, N] integers, M for tokens that have halted.
      num: number M of experts.

    Returns:
      [S, B, N] int64.

    Example:
      >>> latent_steps_used(np.array([[[[0, 1]], [[1, 2]], [[0, 2]]]]), num=2).tolist()
      [[[3, 1]]]
    """
    return (experts < num).sum(1)


def count_experts(experts: np.ndarray, num: int, axes: tuple[int, ...]) -> np.ndarray:
    """Count how often each expert was chosen, summed over some axes.

    Args:
      experts: array of integers in 0 … num-1.
      num: number M of experts.
      axes: the axes to sum over.

    Returns:
      The remaining axes and a last axis M, int64.

    Example:
      >>> count_experts(np.array([[0, 2, 2], [1, 1, 1]]), 3, axes=(1,)).tolist()
      [[1, 0, 2], [0, 3, 0]]
    """
    counts = [np.count_nonzero(experts == expert, axis=axes) for expert in range(num)]
    return np.stack(counts, axis=-1).astype(np.int64)


def shares(counts: np.ndarray) -> np.ndarray:
    """Divide counts [..., M] by their sum over the last axis; NaN where it is zero."""
    total = counts.sum(-1, keepdims=True)
    return np.divide(counts, total, out=np.full(counts.shape, np.nan), where=total > 0)


def use(experts: np.ndarray, num: int) -> np.ndarray:
    """Return the share of tokens routed to each expert: [S, T, B, N] -> [S, T, M]."""
    return shares(count_experts(experts, num, (2, 3)))


def use_by_place(experts: np.ndarray, num: int) -> np.ndarray:
    """Return the use of each expert at each place: [S, T, B, N] -> [T, N, M]."""
    return shares(count_experts(experts, num, (0, 2)))


def use_by_group(experts: np.ndarray, num: int, membership: np.ndarray) -> np.ndarray:
    """Return the use of each expert by the samples of each group.

    Args:
      experts: [S, T, B, N] integers.
      num: number M of experts.
      membership: [B, G], 1 where a sample belongs to a group and 0 elsewhere. A sample may belong
        to several groups, as a prompt has several words.

    Returns:
      [G, T, M] float64; NaN for a group without samples.
    """
    counts = count_experts(experts, num, (0, 3))
    return shares(np.einsum("bg,tbm->gtm", membership, counts))


def effective_experts(use: np.ndarray) -> np.ndarray:
    """Return exp(entropy of the use): M if all experts are used alike, 1 if only one is.

    Args:
      use: [..., M] shares of the tokens.

    Example:
      >>> effective_experts(np.array([[0.25] * 4, [0, 1, 0, 0]])).round(6).tolist()
      [4.0, 1.0]
    """
    return np.exp(entropy(use))


def dead_experts(use: np.ndarray) -> list[int]:
    """Return the experts with a share below `DEAD` / M.

    Args:
      use: [M] shares of the tokens.

    Example:
      >>> dead_experts(np.array([0.96, 0.0, 0.04]))
      [1]
    """
    return np.flatnonzero(use < DEAD / len(use)).tolist()

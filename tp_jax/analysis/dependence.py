"""Mutual information between the chosen expert and a discrete variable.

U units, L levels of the variable, M experts. A unit is what is drawn independently: a sample, with
all its tokens and steps, or one token of a sample. Choices within a unit resemble each other, so a
permutation test must move whole units, or levels within units, and not single choices.
"""

import dataclasses
from typing import Any

import numpy as np

# Random permutations for each baseline.
PERMUTATIONS = 200
QUANTILE = 0.975


@dataclasses.dataclass(frozen=True)
class Information:
    """Mutual information of the expert with a variable, in bits.

    Attributes:
      bits: the plug-in estimate, which is too large by chance: never zero for finite samples.
      corrected: the same with the bias correction of Miller and Madow, at least 0.
      permuted_mean: mean of the plug-in estimate when the variable is permuted.
      permuted_high: its 97.5 % quantile. Only `bits` above it show a dependence.
    """

    bits: float
    corrected: float
    permuted_mean: float
    permuted_high: float


def mutual_information(table: np.ndarray) -> Any:
    """Return the plug-in estimate of the mutual information, in bits.

    Args:
      table: counts [..., L, M] of each pair of a level and an expert.

    Returns:
      [...] float64; 0 for an empty table.

    Example:
      >>> mutual_information(np.array([[50, 0], [0, 50]])).item()
      1.0
    """
    table = np.asarray(table, np.float64)
    joint = table / np.maximum(table.sum((-2, -1), keepdims=True), 1)
    independent = joint.sum(-1, keepdims=True) * joint.sum(-2, keepdims=True)
    ratio = np.divide(joint, independent, out=np.ones_like(joint), where=joint > 0)
    return np.maximum((joint * np.log2(ratio)).sum((-2, -1)), 0)


def miller_madow(table: np.ndarray) -> float:
    """Return the mutual information with Miller and Madow's correction of each entropy, in bits.

    I = H(level) + H(expert) - H(both), and each plug-in entropy is too small by about
    (K - 1) / (2n) nats, with K the number of its cells that aren't empty and n the number of
    choices (Miller, "Note on the bias of information estimates", 1955).

    Args:
      table: counts [L, M].

    Returns:
      The corrected estimate, at least 0.
    """
    total = table.sum()
    if not total:
        return 0.0
    levels, experts = np.count_nonzero(table.sum(1)), np.count_nonzero(table.sum(0))
    cells = np.count_nonzero(table)
    correction = (levels + experts - cells - 1) / (2 * total * np.log(2))
    return max(float(mutual_information(table) + correction), 0.0)


def information(
    table: np.ndarray, permuted: np.ndarray, permuted_total: float | None = None
) -> Information:
    """Return the estimates for one variable.

    Args:
      table: counts [L, M] of all choices.
      permuted: [P, L, M] tables of permutations, from the functions below.
      permuted_total: number of choices in each permuted table, if the permutations are of a part of
        the choices. Chance information falls as 1/n, and is scaled to the number in `table`.
    """
    scale = 1.0 if permuted_total is None else permuted_total / max(table.sum(), 1)
    baseline = scale * mutual_information(permuted)
    return Information(
        bits=float(mutual_information(table)),
        corrected=miller_madow(table),
        permuted_mean=float(baseline.mean()),
        permuted_high=float(np.quantile(baseline, QUANTILE)),
    )


def permute_levels(
    counts: np.ndarray, rng: np.random.Generator, permutations: int = PERMUTATIONS
) -> np.ndarray:
    """Permute the levels within each unit, for a variable that varies within units.

    Such variables are the timestep, the latent step and the place, with samples as units.

    Args:
      counts: [U, L, M] choices of each unit at each level.
      rng: random numbers.
      permutations: number P of permutations.

    Returns:
      Tables [P, L, M].
    """
    tables = []
    for _ in range(permutations):
        order = rng.random(counts.shape[:2]).argsort(axis=1)
        tables.append(np.take_along_axis(counts, order[:, :, None], axis=1).sum(0))
    return np.stack(tables)


def permute_units(
    counts: np.ndarray,
    membership: np.ndarray,
    rng: np.random.Generator,
    permutations: int = PERMUTATIONS,
) -> np.ndarray:
    """Permute the levels among the units, for a variable that is constant within a unit.

    Such a variable is the class of a sample.

    Args:
      counts: [U, M] choices of each unit.
      membership: [U, L], 1 where a unit has a level. A unit may have several.
      rng: random numbers.
      permutations: number P of permutations.

    Returns:
      Tables [P, L, M].
    """
    orders = (rng.permutation(len(counts)) for _ in range(permutations))
    return np.stack([membership[order].T @ counts for order in orders])


def permute_labels(
    labels: np.ndarray,
    experts: np.ndarray,
    levels: int,
    num: int,
    rng: np.random.Generator,
    permutations: int = PERMUTATIONS,
) -> np.ndarray:
    """Permute the labels among the units, for a variable that has a label for every choice.

    Such a variable is the cluster of a token's content, with the path of one token through all
    steps as the unit.

    Args:
      labels: [U, ...] integers in 0 … levels-1.
      experts: [U, ...] the expert of each label's choice.
      levels: number L of levels.
      num: number M of experts.
      rng: random numbers.
      permutations: number P of permutations.

    Returns:
      Tables [P, L, M].
    """
    orders = (rng.permutation(len(labels)) for _ in range(permutations))
    return np.stack([cross_table(labels[order], experts, levels, num) for order in orders])


def cross_table(labels: np.ndarray, experts: np.ndarray, levels: int, num: int) -> np.ndarray:
    """Count the pairs of labels and experts of the same shape: [L, M] int64.

    The expert M, which stands for tokens that have halted, isn't counted.

    Example:
      >>> cross_table(np.array([0, 0, 1]), np.array([1, 1, 0]), levels=2, num=2).tolist()
      [[0, 2], [1, 0]]
    """
    pairs = labels.ravel().astype(np.int64) * (num + 1) + experts.ravel()
    return np.bincount(pairs, minlength=levels * (num + 1)).reshape(levels, num + 1)[:, :num]

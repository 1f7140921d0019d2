"""Paired differences between two variants, with intervals.

The same seeds and, for some measures, the same examples are scored for both variants, so that
differences are taken seed by seed and example by example.
"""

import dataclasses

import numpy as np
from scipy import stats

LEVEL = 0.95
DRAWS = 10_000


@dataclasses.dataclass(frozen=True)
class Difference:
    """The mean difference between two variants.

    Attributes:
      mean: mean over seeds (and examples) of the first variant minus the second.
      bootstrap: 95 % percentile interval of the bootstrap over seeds and, if there are values of
        examples, over examples. None from one seed without examples.
      t: 95 % interval of Student's t over the differences of the seeds; None from one seed.
      seeds: number of seeds.
      examples: number of examples that are paired; 0 if there are none.
    """

    mean: float
    bootstrap: tuple[float, float] | None
    t: tuple[float, float] | None
    seeds: int
    examples: int

    @property
    def interval(self) -> tuple[float, float] | None:
        """Return the wider interval, which verdicts use; None if there is none.

        The bootstrap is too narrow for few seeds: of three, it can't reach beyond their smallest
        and largest difference. Student's t is right for few seeds with normal differences, but
        doesn't know how much the examples vary.
        """
        found = [interval for interval in (self.bootstrap, self.t) if interval]
        return max(found, key=lambda interval: interval[1] - interval[0], default=None)

    @property
    def half_width(self) -> float | None:
        """Return half the width of `interval`: a smaller difference couldn't have been seen."""
        return (self.interval[1] - self.interval[0]) / 2 if self.interval else None


def paired_difference(
    first: np.ndarray, second: np.ndarray, *, draws: int = DRAWS, seed: int = 0
) -> Difference:
    """Return the mean difference of two variants, with intervals.

    Args:
      first, second: scores [seeds], or values of examples [seeds, examples], in the same order.
      draws: number of draws of the bootstrap.
      seed: seed of the draws.

    Example:
      >>> found = paired_difference(np.array([2.0, 3.0, 4.0]), np.array([1.0, 1.0, 1.0]))
      >>> found.mean, [round(end, 2) for end in found.t]
      (2.0, [-0.48, 4.48])
    """
    away = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    table = away[:, None] if away.ndim == 1 else away
    seeds, examples = table.shape
    t = None
    if seeds > 1:
        rows = table.mean(1)
        half = stats.t.ppf((1 + LEVEL) / 2, seeds - 1) * rows.std(ddof=1) / np.sqrt(seeds)
        t = float(rows.mean() - half), float(rows.mean() + half)
    found = None
    if seeds > 1 or examples > 1:
        means = bootstrap_means(table, draws, np.random.default_rng(seed))
        low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        found = float(low), float(high)
    return Difference(float(table.mean()), found, t, seeds, examples if away.ndim == 2 else 0)


def bootstrap_means(table: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Return bootstrap means [draws] of a table of seeds and examples.

    Seeds and examples are drawn independently, with replacement, since every seed is scored on the
    same examples: the pigeonhole bootstrap of Owen (Annals of Applied Statistics 1, 2007).

    Args:
      table: [seeds, examples].
      draws: number of draws.
      rng: source of the draws.
    """
    seeds, examples = table.shape
    rows = rng.multinomial(seeds, np.full(seeds, 1 / seeds), draws) / seeds
    # In parts that fit into memory.
    means = []
    for part in np.array_split(rows, max(draws * examples // 10_000_000, 1)):
        columns = rng.multinomial(examples, np.full(examples, 1 / examples), len(part)) / examples
        means.append(np.einsum("de,de->d", part @ table, columns))
    return np.concatenate(means)

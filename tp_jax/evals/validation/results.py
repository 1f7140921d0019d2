"""From the losses of examples to means, standard errors and bands of timesteps.

Axes: N examples, K times of each.
"""

import dataclasses
import itertools
from typing import Any

import numpy as np

from tp_jax.evals.validation.losses import Losses

# The edges of the bands of timesteps; the last band includes its upper edge.
BAND_EDGES = (0, 250, 500, 750, 1000)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean loss.

    Attributes:
      loss: the mean.
      standard_error: of the mean, over examples; 0.0 with a single example.
      count: number of pairs of an example and a time.
    """

    loss: float
    standard_error: float
    count: int


@dataclasses.dataclass(frozen=True)
class Summary(Estimate):
    """The results of one part of the validation data.

    Attributes:
      loss, standard_error, count: of all examples and times.
      bands: the same by band of timesteps, such as "0-250"; only bands with a time.
      losses: [N] the mean loss of each example, in the order of their indices. Differences of two
        models are taken example by example.
      latent_steps: mean number of latent steps of a token, over all thinking layers.
      digest: SHA-256 of the examples: losses of models with the same digest can be paired.
    """

    bands: dict[str, Estimate]
    losses: list[float]
    latent_steps: float
    digest: str

    def scalars(self) -> dict[str, float]:
        """Return the loss, and that of each band, by name."""
        return {"loss": self.loss} | {
            f"loss_{name}": estimate.loss for name, estimate in self.bands.items()
        }

    def text(self) -> str:
        """Return the loss with its standard error."""
        return f"{self.loss:.5g} ± {self.standard_error:.2g}"

    def line(self) -> str:
        """Return the loss and that of each band in words."""
        bands = "  ".join(f"{name}: {estimate.loss:.4g}" for name, estimate in self.bands.items())
        return f"{self.text()}, by timestep {bands}"

    def to_json(self) -> dict[str, Any]:
        """Return all fields as a JSON object."""
        return dataclasses.asdict(self)


def summarise(found: Losses) -> Summary:
    """Return mean and standard error of losses, and the same by band of timesteps."""
    bands: dict[str, Estimate] = {}
    for low, high in itertools.pairwise(BAND_EDGES):
        inside = (found.timesteps >= low) & (found.timesteps < high)
        if high == BAND_EDGES[-1]:
            inside |= found.timesteps >= high
        if inside.any():
            bands[f"{low}-{high}"] = estimate(found.losses, inside)
    every = estimate(found.losses, np.ones(found.losses.shape, bool))
    return Summary(
        **dataclasses.asdict(every),
        bands=bands,
        losses=found.losses.mean(axis=1).tolist(),
        latent_steps=float(found.latent_steps.mean()),
        digest=found.digest,
    )


def estimate(losses: np.ndarray, chosen: np.ndarray) -> Estimate:
    """Return the mean of the chosen losses, and its standard error over examples.

    The times of one example aren't independent. The standard error is therefore that of a ratio
    estimator: the mean is Σ sᵢ / Σ nᵢ, with the sum sᵢ and the number nᵢ of the chosen losses of
    example i. If all are chosen, it is the standard deviation of the examples' means over √N.

    Args:
      losses: [N, K].
      chosen: [N, K] bool, with at least one True.

    Source: Cochran 1977, "Sampling Techniques", section 6.3.

    Example:
      >>> estimate(np.array([[1.0, 3.0], [2.0, 6.0]]), np.ones((2, 2), bool))
      Estimate(loss=3.0, standard_error=1.0, count=4)
    """
    sums, counts = np.where(chosen, losses, 0).sum(axis=1), chosen.sum(axis=1)
    num, total = len(losses), int(counts.sum())
    mean = sums.sum() / total
    residuals = sums - mean * counts
    error = np.sqrt(num / max(num - 1, 1) * np.square(residuals).sum()) / total
    return Estimate(float(mean), float(error), total)

"""The interface of an objective: how noise is added to data, and the losses of a prediction."""

from collections.abc import Callable
from typing import ClassVar, Protocol

import jax

# (x [B, H, W, C], timestep [B] in 0 … 1000) -> output [B, H, W, out_channels]
Predict = Callable[[jax.Array, jax.Array], jax.Array]


class Objective(Protocol):
    """A training objective: a frozen dataclass of numbers with these methods.

    Attributes:
      default_sampler: key of `samplers.SAMPLERS`, the sampler in default configs.
    """

    default_sampler: ClassVar[str]

    @property
    def prediction_type(self) -> str:
        """Return what the model predicts: "noise", "velocity" or "data"."""
        ...

    def out_channels(self, channels: int) -> int:
        """Return the output channels that the model needs for data with `channels` channels."""
        ...

    def sample_times(self, keys: jax.Array) -> jax.Array:
        """Sample a training time [B] for each of B PRNG keys, in the unit of this objective."""
        ...

    def times_at(self, quantiles: jax.Array) -> jax.Array:
        """Return the quantiles of the distribution that `sample_times` samples from.

        Args:
          quantiles: [B] float32 in (0, 1).

        Returns:
          Times [B] in the unit of this objective; with uniform quantiles they are distributed as
          those of training.
        """
        ...

    def add_noise(self, x: jax.Array, noise: jax.Array, times: jax.Array) -> jax.Array:
        """Add noise [B, …] to data x [B, …] at times [B]."""
        ...

    def losses(
        self, predict: Predict, x: jax.Array, noise: jax.Array, times: jax.Array
    ) -> dict[str, jax.Array]:
        """Compute the loss of a prediction and its terms.

        Args:
          predict: the model.
          x: [B, H, W, C] data.
          noise: [B, H, W, C] standard normal.
          times: [B] from `sample_times`.

        Returns:
          {name: [B] float32}; training minimises the mean of "loss".
        """
        ...


def mean_over_sample(x: jax.Array) -> jax.Array:
    """Return the mean over all axes except the first."""
    return x.reshape(x.shape[0], -1).mean(-1)


def expand(values: jax.Array, x: jax.Array) -> jax.Array:
    """Reshape values [B] to [B, 1, 1, …], to broadcast against x [B, …]."""
    return values.reshape(-1, *(1,) * (x.ndim - 1))

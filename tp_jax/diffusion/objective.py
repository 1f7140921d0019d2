"""What an objective is: how data is noised, what is asked of the model, how it is scored."""

from collections.abc import Callable
from typing import Protocol

import jax

# (x [B, H, W, C], timestep [B] in 0 … 1000) -> output [B, H, W, out_channels]
Predict = Callable[[jax.Array, jax.Array], jax.Array]


class Objective(Protocol):
    """A frozen dataclass of numbers with these methods."""

    def out_channels(self, channels: int) -> int:
        """Channels that the model predicts for data of `channels`."""

    def sample_times(self, keys: jax.Array) -> jax.Array:
        """One training time [B] for each of B PRNG keys, in the objective's own unit."""

    def losses(
        self, predict: Predict, x: jax.Array, noise: jax.Array, times: jax.Array
    ) -> dict[str, jax.Array]:
        """Per-sample terms, each [B] float32; "loss" is what training minimises."""


def mean_over_sample(x: jax.Array) -> jax.Array:
    """The mean over all axes but the first."""
    return x.reshape(x.shape[0], -1).mean(-1)


def expand(values: jax.Array, x: jax.Array) -> jax.Array:
    """[B] as [B, 1, 1, …], to multiply x."""
    return values.reshape(-1, *(1,) * (x.ndim - 1))

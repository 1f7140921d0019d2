"""What an objective is: how data is noised, what is asked of the model, how it is scored."""

from collections.abc import Callable
from typing import ClassVar, Protocol

import jax

# (x [B, H, W, C], timestep [B] in 0 … 1000) -> output [B, H, W, out_channels]
Predict = Callable[[jax.Array, jax.Array], jax.Array]


class Objective(Protocol):
    """A frozen dataclass of numbers with these methods.

    Attributes:
      default_sampler: the key of `samplers.SAMPLERS` that new configs of this objective get.
    """

    default_sampler: ClassVar[str]

    @property
    def predicts(self) -> str:
        """What the model predicts: "noise", "velocity" or "data"."""
        ...

    def out_channels(self, channels: int) -> int:
        """Channels that the model predicts for data of `channels`."""
        ...

    def sample_times(self, keys: jax.Array) -> jax.Array:
        """One training time [B] for each of B PRNG keys, in the objective's own unit."""
        ...

    def noised(self, x: jax.Array, noise: jax.Array, times: jax.Array) -> jax.Array:
        """Noised data of data x [B, …], noise [B, …] and times [B]."""
        ...

    def losses(
        self, predict: Predict, x: jax.Array, noise: jax.Array, times: jax.Array
    ) -> dict[str, jax.Array]:
        """Per-sample terms, each [B] float32; "loss" is what training minimises."""
        ...


def mean_over_sample(x: jax.Array) -> jax.Array:
    """The mean over all axes but the first."""
    return x.reshape(x.shape[0], -1).mean(-1)


def expand(values: jax.Array, x: jax.Array) -> jax.Array:
    """[B] as [B, 1, 1, …], to multiply x."""
    return values.reshape(-1, *(1,) * (x.ndim - 1))

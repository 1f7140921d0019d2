"""Rectified flow as SD3 parametrises it (Esser et al., arXiv 2403.03206)."""

import dataclasses
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from tp_jax.diffusion.config import FlowConfig
from tp_jax.diffusion.objective import Predict, expand, mean_over_sample
from tp_jax.messages.errors import UserError

# σ, as a number or as an array.
Times = TypeVar("Times", float, np.ndarray, jax.Array)
# Below, training doesn't magnify errors of predicted data further, as that paper has it.
LEAST_SIGMA = 0.05


@dataclasses.dataclass(frozen=True)
class RectifiedFlow(FlowConfig):
    """x_σ = (1 - σ)·x + σ·noise, and the velocity noise - x is learned at timestep 1000·σ.

    The fields are those of `FlowConfig`.
    """

    def shifted(self, sigma: Times) -> Times:
        """Moves times towards noise for shift > 1; 0 and 1 stay."""
        return self.shift * sigma / (1 + (self.shift - 1) * sigma)

    def sample_times(self, keys: jax.Array) -> jax.Array:
        """Shifted logit-normal σ [B] in (0, 1)."""
        normal = jax.vmap(jax.random.normal)(keys)
        return self.shifted(jax.nn.sigmoid(self.time_mean + self.time_std * normal))

    def noised(self, x: jax.Array, noise: jax.Array, times: jax.Array) -> jax.Array:
        """x_σ of data x [B, …] at σ [B]."""
        sigma = expand(times, x)
        return (1 - sigma) * x + sigma * noise

    def velocity(self, output: jax.Array, x_t: jax.Array, sigma: jax.Array) -> jax.Array:
        """The velocity [B, …] float32 that a model's output at x_σ says, σ broadcast to it."""
        output = output.astype(jnp.float32)
        if self.prediction == "velocity":
            return output
        return (x_t - output) / sigma

    def losses(
        self, predict: Predict, x: jax.Array, noise: jax.Array, times: jax.Array
    ) -> dict[str, jax.Array]:
        """ "mse" of the velocity, which is the "loss"."""
        x, noise = x.astype(jnp.float32), noise.astype(jnp.float32)
        x_t = self.noised(x, noise, times)
        output = predict(x_t, 1000 * times)
        if self.prediction == "velocity":
            error = output.astype(jnp.float32) - (noise - x)
        else:
            # Both as velocities, so that the data have the least loss at every σ.
            least = jnp.maximum(expand(times, x), LEAST_SIGMA)
            error = self.velocity(output, x_t, least) - self.velocity(x, x_t, least)
        mse = mean_over_sample(jnp.square(error))
        return {"loss": mse, "mse": mse}

    def schedule(self, steps: int) -> np.ndarray:
        """σ [steps + 1] float64, from 1 down to 0.

        The last σ before 0 is shifted twice, as in diffusers' scheduler, whose results are
        the ones published.
        """
        if steps < 1:
            raise UserError(f"sampler_steps={steps}: must be 1 or more")
        return np.append(self.shifted(np.linspace(1.0, self.shifted(1 / 1000), steps)), 0.0)

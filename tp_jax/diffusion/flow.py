"""Rectified flow as in SD3 (Esser et al., arXiv 2403.03206)."""

import dataclasses
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from tp_jax.diffusion.config import FlowConfig
from tp_jax.diffusion.objective import Predict, expand, mean_over_sample
from tp_jax.messages.errors import UserError

# σ as a number or an array.
Times = TypeVar("Times", float, np.ndarray, jax.Array)
# With predicted data, the velocity error is the data error divided by σ. The training loss divides
# by at least this number, as in arXiv 2511.13720.
MIN_SIGMA = 0.05


@dataclasses.dataclass(frozen=True)
class RectifiedFlow(FlowConfig):
    """Rectified flow: x_σ = (1 - σ)·x + σ·noise, with velocity noise - x, at timestep 1000·σ.

    The fields are those of `FlowConfig`.

    Example:
      >>> flow = RectifiedFlow(shift=3.0)
      >>> flow.schedule(2).round(3).tolist()
      [1.0, 0.009, 0.0]
      >>> flow.add_noise(jnp.zeros((1, 2)), jnp.ones((1, 2)), jnp.array([0.25])).tolist()
      [[0.25, 0.25]]
    """

    def shift_sigma(self, sigma: Times) -> Times:
        """Shift σ towards 1, which is noise, for shift > 1; 0 and 1 stay as they are."""
        return self.shift * sigma / (1 + (self.shift - 1) * sigma)

    def sample_times(self, keys: jax.Array) -> jax.Array:
        """Sample σ [B] in (0, 1) from the shifted logit-normal distribution."""
        return self._from_normal(jax.vmap(jax.random.normal)(keys))

    def times_at(self, quantiles: jax.Array) -> jax.Array:
        """Return quantiles [B] in (0, 1) of the distribution of σ in training."""
        return self._from_normal(jax.scipy.special.ndtri(quantiles))

    def _from_normal(self, normal: jax.Array) -> jax.Array:
        return self.shift_sigma(jax.nn.sigmoid(self.time_mean + self.time_std * normal))

    def add_noise(self, x: jax.Array, noise: jax.Array, times: jax.Array) -> jax.Array:
        """Return x_σ for data x [B, …], noise [B, …] and σ [B]."""
        sigma = expand(times, x)
        return (1 - sigma) * x + sigma * noise

    def velocity(self, output: jax.Array, x_t: jax.Array, sigma: jax.Array) -> jax.Array:
        """Convert a model output to a velocity.

        Args:
          output: [B, …], the prediction at x_t.
          x_t: [B, …] noisy data.
          sigma: σ, broadcastable to x_t.

        Returns:
          [B, …] float32.
        """
        output = output.astype(jnp.float32)
        if self.prediction == "velocity":
            return output
        return (x_t - output) / sigma

    def losses(
        self, predict: Predict, x: jax.Array, noise: jax.Array, times: jax.Array
    ) -> dict[str, jax.Array]:
        """Return the squared error of the velocity as "mse" and "loss", each [B] float32."""
        x, noise = x.astype(jnp.float32), noise.astype(jnp.float32)
        x_t = self.add_noise(x, noise, times)
        output = predict(x_t, 1000 * times)
        if self.prediction == "velocity":
            error = output.astype(jnp.float32) - (noise - x)
        else:
            # Clamp σ in the target as well: otherwise predicting the exact data would not give the
            # smallest loss.
            sigma = jnp.maximum(expand(times, x), MIN_SIGMA)
            error = self.velocity(output, x_t, sigma) - self.velocity(x, x_t, sigma)
        mse = mean_over_sample(jnp.square(error))
        return {"loss": mse, "mse": mse}

    def schedule(self, steps: int) -> np.ndarray:
        """Return σ [steps + 1] float64, from 1 down to 0.

        The last σ before 0 is shifted twice, as in the scheduler of diffusers, with which the
        published results were computed.

        Raises:
          UserError: fewer than one step.
        """
        if steps < 1:
            raise UserError(f"sampler_steps={steps}: must be 1 or more")
        return np.append(self.shift_sigma(np.linspace(1.0, self.shift_sigma(1 / 1000), steps)), 0.0)

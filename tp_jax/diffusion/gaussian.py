"""Gaussian diffusion with a learned variance, as DiT trains and samples it.

Sources: Ho et al. (arXiv 2006.11239); Nichol & Dhariwal (arXiv 2102.09672) for the learned
variance and the bound; Song et al. (arXiv 2010.02502) for DDIM.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from tp_jax.diffusion.config import GaussianConfig
from tp_jax.diffusion.objective import Predict, expand, mean_over_sample
from tp_jax.messages.errors import UserError


@dataclasses.dataclass(frozen=True)
class Tables:
    """Everything that follows from the betas; each [S] float64, S diffusion steps.

    Attributes:
      timestep: the original timestep of each step, which the network sees.
    """

    timestep: np.ndarray
    betas: np.ndarray

    @functools.cached_property
    def alphas_cumprod(self) -> np.ndarray:
        """Share of the signal's variance that is left after each step."""
        return np.cumprod(1 - self.betas)

    @functools.cached_property
    def alphas_cumprod_prev(self) -> np.ndarray:
        """The same one step nearer to the data; 1 at the data."""
        return np.append(1.0, self.alphas_cumprod[:-1])

    @functools.cached_property
    def posterior_variance(self) -> np.ndarray:
        """Variance of q(x_{t-1} | x_t, x_0)."""
        return self.betas * (1 - self.alphas_cumprod_prev) / (1 - self.alphas_cumprod)

    @functools.cached_property
    def posterior_log_variance_clipped(self) -> np.ndarray:
        """Its logarithm; the first entry, log 0, is replaced by the second."""
        return np.log(np.append(self.posterior_variance[1], self.posterior_variance[1:]))

    @functools.cached_property
    def posterior_mean_x0(self) -> np.ndarray:
        """Coefficient of x_0 in the mean of q(x_{t-1} | x_t, x_0)."""
        return self.betas * np.sqrt(self.alphas_cumprod_prev) / (1 - self.alphas_cumprod)

    @functools.cached_property
    def posterior_mean_xt(self) -> np.ndarray:
        """Coefficient of x_t in it."""
        remaining = 1 - self.alphas_cumprod_prev
        return remaining * np.sqrt(1 - self.betas) / (1 - self.alphas_cumprod)


def respaced_timesteps(num_timesteps: int, steps: int, spacing: str) -> np.ndarray:
    """Which of the original timesteps a sampler visits, ascending.

    Args:
      spacing: "even", both ends included (DiT); "stride", an integer stride from 0 (ADM's
        "ddimN").

    Raises:
      UserError: more steps than timesteps, or no stride that gives this many.
    """
    if not 2 <= steps <= num_timesteps:
        raise UserError(f"sampler_steps={steps}: choose 2 to {num_timesteps}")
    if spacing == "even":
        # A running sum of strides, rounded half to even, is what the published code takes.
        stride, position, taken = (num_timesteps - 1) / (steps - 1), 0.0, list[int]()
        for _ in range(steps):
            taken.append(round(position))
            position += stride
        return np.array(taken)
    for stride in range(1, num_timesteps):
        taken = np.arange(0, num_timesteps, stride)
        if len(taken) == steps:
            return taken
    raise UserError(
        f"sampler_steps={steps}: no integer stride through {num_timesteps} gives it; "
        'use spacing="even"'
    )


@dataclasses.dataclass(frozen=True)
class GaussianDiffusion(GaussianConfig):
    """DiT's objective; the defaults are its numbers.

    The model predicts the noise and, in as many channels again, v in [-1, 1], which
    interpolates the log variance between the clipped posterior's and beta's.

    The fields are those of `GaussianConfig`.
    """

    def tables(self, timesteps: np.ndarray | None = None) -> Tables:
        """Tables of the whole process, or of one that visits these timesteps only."""
        betas = np.linspace(self.beta_start, self.beta_end, self.num_timesteps, dtype=np.float64)
        if timesteps is None:
            return Tables(np.arange(self.num_timesteps), betas)
        kept = np.cumprod(1 - betas)[timesteps]
        return Tables(timesteps, 1 - kept / np.append(1.0, kept[:-1]))

    def sample_times(self, keys: jax.Array) -> jax.Array:
        """Uniform timesteps [B] int32."""

        def one(key: jax.Array) -> jax.Array:
            return jax.random.randint(key, (), 0, self.num_timesteps)

        return jax.vmap(one)(keys)

    def noised(self, x: jax.Array, noise: jax.Array, times: jax.Array) -> jax.Array:
        """q(x_t | x_0): data x [B, …] at timesteps [B] int."""
        kept = self.tables().alphas_cumprod
        signal, spread = take(np.sqrt(kept), times), take(np.sqrt(1 - kept), times)
        return expand(signal, x) * x + expand(spread, x) * noise

    def losses(
        self, predict: Predict, x: jax.Array, noise: jax.Array, times: jax.Array
    ) -> dict[str, jax.Array]:
        """ "mse" of the noise, "vb", the bound in bits a dimension, and their sum, "loss".

        The bound trains the variance alone: the predicted noise is detached inside it.
        """
        x, noise = x.astype(jnp.float32), noise.astype(jnp.float32)
        x_t = self.noised(x, noise, times)
        output = predict(x_t, times.astype(jnp.float32)).astype(jnp.float32)
        predicted, _ = jnp.split(output, 2, axis=-1)
        mse = mean_over_sample(jnp.square(noise - predicted))
        vb = self._bound(output, x, x_t, times)
        return {"loss": mse + vb, "mse": mse, "vb": vb}

    def _bound(
        self, output: jax.Array, x: jax.Array, x_t: jax.Array, times: jax.Array
    ) -> jax.Array:
        tables = self.tables()
        noise, v = jnp.split(output, 2, axis=-1)
        output = jnp.concatenate([jax.lax.stop_gradient(noise), v], axis=-1)
        mean, log_variance, _ = posterior(tables, output, x_t, times)
        true_mean = _posterior_mean(tables, x, x_t, times)
        true_log_variance = expand(take(tables.posterior_log_variance_clipped, times), x)
        kl = 0.5 * (
            log_variance
            - true_log_variance
            - 1
            + jnp.exp(true_log_variance - log_variance)
            + jnp.square(true_mean - mean) * jnp.exp(-log_variance)
        )
        nll = -discretised_log_likelihood(x, mean, 0.5 * log_variance)
        bits = jnp.where(times == 0, mean_over_sample(nll), mean_over_sample(kl)) / np.log(2)
        return bits


def take(table: np.ndarray, index: jax.Array) -> jax.Array:
    """Entries [B] float32 of a float64 table."""
    return jnp.asarray(table, jnp.float32)[index]


def _posterior_mean(tables: Tables, x: jax.Array, x_t: jax.Array, index: jax.Array) -> jax.Array:
    x0_part, xt_part = take(tables.posterior_mean_x0, index), take(tables.posterior_mean_xt, index)
    return expand(x0_part, x) * x + expand(xt_part, x) * x_t


def posterior(
    tables: Tables, output: jax.Array, x_t: jax.Array, index: jax.Array, clip: bool = False
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The model's p(x_{t-1} | x_t).

    Args:
      output: [B, H, W, 2C] noise and v.
      index: [B] int, steps of `tables`.
      clip: clip the predicted data to [-1, 1].

    Returns:
      Mean, log variance and predicted data, each [B, H, W, C].
    """
    noise, v = jnp.split(output, 2, axis=-1)
    low = expand(take(tables.posterior_log_variance_clipped, index), v)
    high = expand(take(np.log(tables.betas), index), v)
    fraction = (v + 1) / 2
    log_variance = fraction * high + (1 - fraction) * low
    x = predicted_data(tables, noise, x_t, index)
    if clip:
        x = jnp.clip(x, -1, 1)
    return _posterior_mean(tables, x, x_t, index), log_variance, x


def predicted_data(tables: Tables, noise: jax.Array, x_t: jax.Array, index: jax.Array) -> jax.Array:
    """x_0 from x_t and its noise."""
    kept = tables.alphas_cumprod
    signal = expand(take(np.sqrt(1 / kept), index), x_t)
    return signal * x_t - expand(take(np.sqrt(1 / kept - 1), index), x_t) * noise


def discretised_log_likelihood(x: jax.Array, mean: jax.Array, log_scale: jax.Array) -> jax.Array:
    """Log probability in nats of 8-bit data x in [-1, 1] under a Gaussian, by its bins.

    Bins reach 1/255 to either side, the outermost ones to infinity. The normal distribution
    function is the tanh approximation that the published losses use.
    """

    def cdf(z: jax.Array) -> jax.Array:
        return 0.5 * (1 + jnp.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))

    inverse_scale = jnp.exp(-log_scale)
    above = cdf((x - mean + 1 / 255) * inverse_scale)
    below = cdf((x - mean - 1 / 255) * inverse_scale)

    def log(p: jax.Array) -> jax.Array:
        return jnp.log(jnp.maximum(p, 1e-12))

    inside = jnp.where(x > 0.999, log(1 - below), log(above - below))
    return jnp.where(x < -0.999, log(above), inside)

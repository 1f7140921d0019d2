"""Gaussian diffusion with a learned variance, as in DiT.

Sources: Ho et al. (arXiv 2006.11239); Nichol & Dhariwal (arXiv 2102.09672) for the learned
variance and the variational bound; Song et al. (arXiv 2010.02502) for DDIM.
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
    """The noise schedule and the constants computed from it, each [S] float64 for S timesteps.

    Attributes:
      timestep: timestep that the model is given, in the numbering of the training process.
      betas: variance of the noise that each step of the forward process adds.
    """

    timestep: np.ndarray
    betas: np.ndarray

    @functools.cached_property
    def alphas_cumprod(self) -> np.ndarray:
        """Return ᾱ_t, the factor of the data's variance in x_t."""
        return np.cumprod(1 - self.betas)

    @functools.cached_property
    def alphas_cumprod_prev(self) -> np.ndarray:
        """Return ᾱ_{t-1}, which is 1 for the first timestep."""
        return np.append(1.0, self.alphas_cumprod[:-1])

    @functools.cached_property
    def posterior_variance(self) -> np.ndarray:
        """Return the variance of q(x_{t-1} | x_t, x_0)."""
        return self.betas * (1 - self.alphas_cumprod_prev) / (1 - self.alphas_cumprod)

    @functools.cached_property
    def posterior_log_variance_clipped(self) -> np.ndarray:
        """Return the log of `posterior_variance`; the first entry, log 0, is set to the second."""
        return np.log(np.append(self.posterior_variance[1], self.posterior_variance[1:]))

    @functools.cached_property
    def posterior_mean_x0(self) -> np.ndarray:
        """Return the coefficient of x_0 in the mean of q(x_{t-1} | x_t, x_0)."""
        return self.betas * np.sqrt(self.alphas_cumprod_prev) / (1 - self.alphas_cumprod)

    @functools.cached_property
    def posterior_mean_xt(self) -> np.ndarray:
        """Return the coefficient of x_t in the mean of q(x_{t-1} | x_t, x_0)."""
        remaining = 1 - self.alphas_cumprod_prev
        return remaining * np.sqrt(1 - self.betas) / (1 - self.alphas_cumprod)


def respaced_timesteps(num_timesteps: int, steps: int, spacing: str) -> np.ndarray:
    """Return the timesteps of the training process that a sampler uses, in ascending order.

    Args:
      num_timesteps: of the training process.
      steps: number of sampler steps.
      spacing: "even" spacing with both ends included (DiT), or an integer "stride" from 0 (ADM's
        "ddimN").

    Raises:
      UserError: fewer than 2 steps, more steps than timesteps, or no integer stride gives this
        number of steps.

    Example:
      >>> respaced_timesteps(1000, 5, "even").tolist()
      [0, 250, 500, 749, 999]
      >>> respaced_timesteps(1000, 4, "stride").tolist()
      [0, 250, 500, 750]
    """
    if not 2 <= steps <= num_timesteps:
        raise UserError(f"sampler_steps={steps}: must be 2 to {num_timesteps}")
    if spacing == "even":
        # The published code adds up the stride in floating point and rounds half to even.
        stride, position, timesteps = (num_timesteps - 1) / (steps - 1), 0.0, list[int]()
        for _ in range(steps):
            timesteps.append(round(position))
            position += stride
        return np.array(timesteps)
    for stride in range(1, num_timesteps):
        timesteps = np.arange(0, num_timesteps, stride)
        if len(timesteps) == steps:
            return timesteps
    raise UserError(
        f"sampler_steps={steps}: no integer stride over {num_timesteps} timesteps gives this "
        'number; use spacing="even"'
    )


@dataclasses.dataclass(frozen=True)
class GaussianDiffusion(GaussianConfig):
    """The objective of DiT: prediction of noise and variance.

    The first half of the model's output channels is the noise. The second half, v in [-1, 1],
    interpolates the log variance between that of the clipped posterior and log β.

    The fields are those of `GaussianConfig`.

    Example:
      >>> diffusion = GaussianDiffusion()
      >>> diffusion.out_channels(4)
      8
      >>> diffusion.tables().alphas_cumprod[[0, 999]].round(5).tolist()
      [0.9999, 4e-05]
    """

    def tables(self, timesteps: np.ndarray | None = None) -> Tables:
        """Return the tables of the whole process, or of the one respaced to `timesteps`."""
        betas = np.linspace(self.beta_start, self.beta_end, self.num_timesteps, dtype=np.float64)
        if timesteps is None:
            return Tables(np.arange(self.num_timesteps), betas)
        alphas_cumprod = np.cumprod(1 - betas)[timesteps]
        return Tables(timesteps, 1 - alphas_cumprod / np.append(1.0, alphas_cumprod[:-1]))

    def sample_times(self, keys: jax.Array) -> jax.Array:
        """Sample uniform timesteps [B] int32."""

        def one(key: jax.Array) -> jax.Array:
            return jax.random.randint(key, (), 0, self.num_timesteps)

        return jax.vmap(one)(keys)

    def times_at(self, quantiles: jax.Array) -> jax.Array:
        """Return quantiles [B] in (0, 1) of the uniform distribution of timesteps."""
        return jnp.floor(quantiles * self.num_timesteps).astype(jnp.int32)

    def add_noise(self, x: jax.Array, noise: jax.Array, times: jax.Array) -> jax.Array:
        """Return x_t ~ q(x_t | x_0) for data x [B, …], noise [B, …] and timesteps [B] int."""
        alphas_cumprod = self.tables().alphas_cumprod
        signal = lookup(np.sqrt(alphas_cumprod), times)
        sigma = lookup(np.sqrt(1 - alphas_cumprod), times)
        return expand(signal, x) * x + expand(sigma, x) * noise

    def losses(
        self, predict: Predict, x: jax.Array, noise: jax.Array, times: jax.Array
    ) -> dict[str, jax.Array]:
        """Return "mse" of the noise, the variational bound "vb", and their sum "loss".

        Each is [B] float32; "vb" is in bits per dimension. The bound trains the variance only: its
        gradient with respect to the predicted noise is stopped.
        """
        x, noise = x.astype(jnp.float32), noise.astype(jnp.float32)
        x_t = self.add_noise(x, noise, times)
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
        true_log_variance = expand(lookup(tables.posterior_log_variance_clipped, times), x)
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


def lookup(table: np.ndarray, index: jax.Array) -> jax.Array:
    """Return the entries `index` [B] of a float64 table, as float32."""
    return jnp.asarray(table, jnp.float32)[index]


def _posterior_mean(tables: Tables, x: jax.Array, x_t: jax.Array, index: jax.Array) -> jax.Array:
    x0_factor = lookup(tables.posterior_mean_x0, index)
    xt_factor = lookup(tables.posterior_mean_xt, index)
    return expand(x0_factor, x) * x + expand(xt_factor, x) * x_t


def posterior(
    tables: Tables, output: jax.Array, x_t: jax.Array, index: jax.Array, clip: bool = False
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Compute the model's p(x_{t-1} | x_t).

    Args:
      tables: of the (respaced) process.
      output: [B, H, W, 2·C], the predicted noise and v.
      x_t: [B, H, W, C].
      index: [B] int, positions in `tables`.
      clip: clip the predicted data to [-1, 1].

    Returns:
      Mean, log variance and predicted data, each [B, H, W, C].
    """
    noise, v = jnp.split(output, 2, axis=-1)
    low = expand(lookup(tables.posterior_log_variance_clipped, index), v)
    high = expand(lookup(np.log(tables.betas), index), v)
    fraction = (v + 1) / 2
    log_variance = fraction * high + (1 - fraction) * low
    x = predicted_data(tables, noise, x_t, index)
    if clip:
        x = jnp.clip(x, -1, 1)
    return _posterior_mean(tables, x, x_t, index), log_variance, x


def predicted_data(tables: Tables, noise: jax.Array, x_t: jax.Array, index: jax.Array) -> jax.Array:
    """Compute x_0 from x_t and the predicted noise, both [B, H, W, C], at positions `index` [B]."""
    alphas_cumprod = tables.alphas_cumprod
    signal = expand(lookup(np.sqrt(1 / alphas_cumprod), index), x_t)
    return signal * x_t - expand(lookup(np.sqrt(1 / alphas_cumprod - 1), index), x_t) * noise


def discretised_log_likelihood(x: jax.Array, mean: jax.Array, log_scale: jax.Array) -> jax.Array:
    """Compute the log probability, in nats, of 8-bit data in [-1, 1] under a discretised Gaussian.

    The bin of a value extends by 1/255 to both sides; the outermost bins extend to infinity. The
    cumulative normal distribution is the tanh approximation of the published code.

    Args:
      x: data, any shape.
      mean, log_scale: mean and log standard deviation of the Gaussian, of the same shape.
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

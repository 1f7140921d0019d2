"""Samplers: one `lax.scan` from noise to data, pure in what they are given.

A sampler is a function `(objective, config) -> (values, step)`: arrays with a leading axis of
sampler steps, over which is scanned, and the function of one step. A step sees x and its own row
of the values; nothing else is carried from the step before, so multistep methods don't fit.
To add one, write such a function and add a line to `SAMPLERS`; configs, flags and the analytic
FLOPs know it then.
"""

# jax and flax leave parts of what their functions take and return without a type.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tp_jax.diffusion.config import SamplerConfig
from tp_jax.diffusion.flow import RectifiedFlow
from tp_jax.diffusion.gaussian import (
    GaussianDiffusion,
    Tables,
    posterior,
    predicted_data,
    respaced_timesteps,
)
from tp_jax.diffusion.objective import Objective
from tp_jax.messages.errors import UserError

# (x [B, …], timestep [B], key) -> output; the key is for whatever the model draws itself.
KeyedPredict = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
Pair = tuple[jax.Array, jax.Array]
# (row of steps, x, noise, predict, key) -> next x
Step = Callable[[Any, jax.Array, jax.Array, KeyedPredict, jax.Array], jax.Array]


def ddpm(objective: GaussianDiffusion, config: SamplerConfig) -> tuple[Any, Step]:
    """Ancestral sampling with the learned variance; no noise at the last step."""
    tables, steps = _gaussian_steps(objective, config)

    def step(
        row: Pair, x: jax.Array, noise: jax.Array, predict: KeyedPredict, key: jax.Array
    ) -> jax.Array:
        index, timestep = row
        output = predict(x, _filled(timestep, x), key)
        mean, log_variance, _ = posterior(tables, output, x, _filled(index, x), config.clip)
        return mean + (index > 0) * jnp.exp(0.5 * log_variance) * noise

    return steps, step


def ddim(objective: GaussianDiffusion, config: SamplerConfig) -> tuple[Any, Step]:
    """DDIM with noise `eta`."""
    tables, steps = _gaussian_steps(objective, config)
    kept, kept_prev = tables.alphas_cumprod, tables.alphas_cumprod_prev
    spread = config.eta * np.sqrt((1 - kept_prev) / (1 - kept)) * np.sqrt(1 - kept / kept_prev)
    coefficients = np.stack(
        [np.sqrt(1 / kept), np.sqrt(1 / kept - 1), np.sqrt(kept_prev),
         np.sqrt(1 - kept_prev - spread**2), spread], axis=1,
    )[::-1].astype(np.float32)  # fmt: skip

    def step(
        row: tuple[Pair, tuple[jax.Array, ...]],
        x: jax.Array,
        noise: jax.Array,
        predict: KeyedPredict,
        key: jax.Array,
    ) -> jax.Array:
        (index, timestep), (inverse, ratio, signal, direction, spread) = row
        output = predict(x, _filled(timestep, x), key)
        predicted, _ = jnp.split(output, 2, axis=-1)
        data = predicted_data(tables, predicted, x, _filled(index, x))
        if config.clip:
            data = jnp.clip(data, -1, 1)
            predicted = (inverse * x - data) / ratio
        return signal * data + direction * predicted + (index > 0) * spread * noise

    return (steps, tuple(coefficients.T)), step


def _gaussian_steps(
    objective: GaussianDiffusion, config: SamplerConfig
) -> tuple[Tables, tuple[np.ndarray, np.ndarray]]:
    timesteps = respaced_timesteps(objective.num_timesteps, config.steps, config.spacing)
    # Timesteps are named on the scale 0 … 1000 whatever the length of the process.
    tables = objective.tables(timesteps)
    index = np.arange(config.steps, dtype=np.int32)
    return tables, (index[::-1], timesteps.astype(np.float32)[::-1])


def euler(objective: RectifiedFlow, config: SamplerConfig) -> tuple[Any, Step]:
    """Euler's method along the flow."""

    def step(
        row: Pair, x: jax.Array, noise: jax.Array, predict: KeyedPredict, key: jax.Array
    ) -> jax.Array:
        sigma, following = row
        return x + (following - sigma) * _velocity(objective, predict, x, sigma, key)

    return _flow_steps(objective, config), step


def heun(objective: RectifiedFlow, config: SamplerConfig) -> tuple[Any, Step]:
    """Heun's second-order method: two predictions a step, one at the last."""

    def step(
        row: Pair, x: jax.Array, noise: jax.Array, predict: KeyedPredict, key: jax.Array
    ) -> jax.Array:
        sigma, following = row
        velocity = _velocity(objective, predict, x, sigma, key)
        ahead = x + (following - sigma) * velocity

        def correct() -> jax.Array:
            again = jax.random.fold_in(key, 1)
            second = _velocity(objective, predict, ahead, following, again)
            return x + (following - sigma) * (velocity + second) / 2

        return jax.lax.cond(following > 0, correct, lambda: ahead)

    return _flow_steps(objective, config), step


def _velocity(
    objective: RectifiedFlow,
    predict: KeyedPredict,
    x: jax.Array,
    sigma: jax.Array,
    key: jax.Array,
) -> jax.Array:
    return objective.velocity(predict(x, _filled(1000 * sigma, x), key), x, sigma)


def _flow_steps(objective: RectifiedFlow, config: SamplerConfig) -> tuple[np.ndarray, np.ndarray]:
    sigmas = objective.schedule(config.steps).astype(np.float32)
    return sigmas[:-1], sigmas[1:]


def _filled(value: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.full(x.shape[:1], value)


@dataclasses.dataclass(frozen=True)
class Sampler:
    """A sampler and what it needs.

    Attributes:
      objective: the objective that it samples.
      start: (objective, config) -> arrays with a leading axis of steps, and the step function.
      predictions: most predictions of the model in one step, for analytic FLOPs.
    """

    objective: type[Objective]
    start: Callable[[Any, SamplerConfig], tuple[Any, Step]]
    predictions: int = 1


# `config.sampling.sampler` -> sampler
SAMPLERS = {
    "ddpm": Sampler(GaussianDiffusion, ddpm),
    "ddim": Sampler(GaussianDiffusion, ddim),
    "euler": Sampler(RectifiedFlow, euler),
    "heun": Sampler(RectifiedFlow, heun, predictions=2),
}


def check_sampler(config: SamplerConfig, objective: Objective) -> None:
    """Check that a sampler exists, fits the objective and can take this number of steps.

    Raises:
      UserError: it doesn't, naming the field.
    """
    if config.sampler not in SAMPLERS:
        raise UserError(
            f"sampler={config.sampler!r} is unknown: choose one of {', '.join(SAMPLERS)}"
        )
    sampler = SAMPLERS[config.sampler]
    if not isinstance(objective, sampler.objective):
        fitting = [
            name for name, other in SAMPLERS.items() if isinstance(objective, other.objective)
        ]
        raise UserError(
            f"sampler={config.sampler!r} does not sample a {type(objective).__name__}: "
            f"choose one of {', '.join(fitting)}"
        )
    sampler.start(objective, config)


def sample_noise(
    key: jax.Array, sample: jax.Array, stream: jax.Array | int, shape: tuple[int, ...]
) -> jax.Array:
    """Noise [B, *shape] of (key, stream, sample): a sample's draws ignore its batch-mates."""
    key = jax.random.fold_in(key, stream)

    def draw(index: jax.Array) -> jax.Array:
        return jax.random.normal(jax.random.fold_in(key, index), shape)

    return jax.vmap(draw)(sample)


def sample(
    objective: Objective,
    config: SamplerConfig,
    predict: KeyedPredict,
    key: jax.Array,
    sample_index: jax.Array,
    shape: tuple[int, ...],
) -> jax.Array:
    """Draws samples.

    Args:
      objective: what the model was trained with.
      predict: (x, timestep [B], key) -> output, guided already.
      key: of the whole drawing; with the index it decides a sample.
      sample_index: [B] int32 index of each sample in the drawing.
      shape: of one sample, (H, W, C).

    Returns:
      [B, H, W, C] float32.
    """
    steps, step = SAMPLERS[config.sampler].start(objective, config)
    noise_key, model_key = jax.random.split(key)

    def body(x: jax.Array, inputs: tuple[jax.Array, Any]) -> tuple[jax.Array, None]:
        number, row = inputs
        noise = sample_noise(noise_key, sample_index, number + 1, shape)
        return step(row, x, noise, predict, jax.random.fold_in(model_key, number)), None

    x = sample_noise(noise_key, sample_index, 0, shape)
    x, _ = jax.lax.scan(body, x, (jnp.arange(config.steps), jax.tree.map(jnp.asarray, steps)))
    return x

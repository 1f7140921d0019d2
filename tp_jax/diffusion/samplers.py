"""Samplers: one `lax.scan` from noise to data.

A sampler is a function (objective, config) -> (rows, step). `rows` are arrays with a leading axis
of sampler steps, over which the scan runs, and `step` computes one step from its row. The scan
carries x, and what a multistep method remembers of earlier steps. The README of this folder says
how to add a sampler.

With α and σ, the noisy data is α·data + σ·noise; in rectified flow α = 1 - σ.
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

# (x [B, …], timestep [B], key) -> output; the key is for random numbers inside the model.
KeyedPredict = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
Pair = tuple[jax.Array, jax.Array]
# () -> standard normal noise with the shape of x; a sampler that needs none doesn't call it.
DrawNoise = Callable[[], jax.Array]
# (row, x, noise, predict, key) -> x of the next step. With a memory, x is the pair (x, memory).
Step = Callable[[Any, Any, DrawNoise, KeyedPredict, jax.Array], Any]


def ddpm(objective: GaussianDiffusion, config: SamplerConfig) -> tuple[Any, Step]:
    """Return ancestral sampling with the learned variance, without noise in the last step."""
    tables, steps = _gaussian_steps(objective, config)

    def step(
        row: Pair, x: jax.Array, noise: DrawNoise, predict: KeyedPredict, key: jax.Array
    ) -> jax.Array:
        index, timestep = row
        output = predict(x, _repeat(timestep, x), key)
        mean, log_variance, _ = posterior(tables, output, x, _repeat(index, x), config.clip)
        return mean + (index > 0) * jnp.exp(0.5 * log_variance) * noise()

    return steps, step


def ddim(objective: GaussianDiffusion, config: SamplerConfig) -> tuple[Any, Step]:
    """Return DDIM with noise scale `config.eta` (Song et al., arXiv 2010.02502, equation 12)."""
    tables, steps = _gaussian_steps(objective, config)
    alpha, alpha_prev = tables.alphas_cumprod, tables.alphas_cumprod_prev
    sigma = config.eta * np.sqrt((1 - alpha_prev) / (1 - alpha)) * np.sqrt(1 - alpha / alpha_prev)
    coefficients = np.stack(
        [np.sqrt(1 / alpha), np.sqrt(1 / alpha - 1), np.sqrt(alpha_prev),
         np.sqrt(1 - alpha_prev - sigma**2), sigma], axis=1,
    )[::-1].astype(np.float32)  # fmt: skip

    def step(
        row: tuple[Pair, tuple[jax.Array, ...]],
        x: jax.Array,
        noise: DrawNoise,
        predict: KeyedPredict,
        key: jax.Array,
    ) -> jax.Array:
        (index, timestep), (inverse, ratio, signal, direction, sigma) = row
        output = predict(x, _repeat(timestep, x), key)
        predicted, _ = jnp.split(output, 2, axis=-1)
        data = predicted_data(tables, predicted, x, _repeat(index, x))
        if config.clip:
            data = jnp.clip(data, -1, 1)
            predicted = (inverse * x - data) / ratio
        mean = signal * data + direction * predicted
        return mean + (index > 0) * sigma * noise() if config.eta else mean

    return (steps, tuple(coefficients.T)), step


def _gaussian_steps(
    objective: GaussianDiffusion, config: SamplerConfig
) -> tuple[Tables, tuple[np.ndarray, np.ndarray]]:
    timesteps = respaced_timesteps(objective.num_timesteps, config.steps, config.spacing)
    # The model is given the timesteps of the training process, not positions in the tables.
    tables = objective.tables(timesteps)
    index = np.arange(config.steps, dtype=np.int32)
    return tables, (index[::-1], timesteps.astype(np.float32)[::-1])


def euler(objective: RectifiedFlow, config: SamplerConfig) -> tuple[Any, Step]:
    """Return Euler's method: along the flow with `config.eta` 0, of the reverse SDE with 1.

    With noise it is DDIM with noise scale η on the path of the flow. For η = 1 that is the first
    order of SDE-DPM-Solver++ (Lu et al., arXiv 2211.01095, equation 18).
    """
    sigmas = _flow_steps(objective, config)

    def along(
        row: Pair, x: jax.Array, noise: DrawNoise, predict: KeyedPredict, key: jax.Array
    ) -> jax.Array:
        sigma, next_sigma = row
        return x + (next_sigma - sigma) * _velocity(objective, predict, x, sigma, key)

    if not config.eta:
        return sigmas, along
    sigma = objective.schedule(config.steps)
    decay = (1 - sigma[:-1]) * sigma[1:] / (sigma[:-1] * (1 - sigma[1:]))
    scale = config.eta * sigma[1:] * np.sqrt(1 - decay**2)
    rest = np.sqrt(sigma[1:] ** 2 - scale**2)

    def noisy(
        row: tuple[jax.Array, ...],
        x: jax.Array,
        noise: DrawNoise,
        predict: KeyedPredict,
        key: jax.Array,
    ) -> jax.Array:
        sigma, next_sigma, rest, scale = row
        velocity = _velocity(objective, predict, x, sigma, key)
        data, predicted_noise = x - sigma * velocity, x + (1 - sigma) * velocity
        return (1 - next_sigma) * data + rest * predicted_noise + scale * noise()

    return (*sigmas, rest.astype(np.float32), scale.astype(np.float32)), noisy


def heun(objective: RectifiedFlow, config: SamplerConfig) -> tuple[Any, Step]:
    """Return Heun's second-order method: two predictions per step, and one in the last step."""

    def step(
        row: Pair, x: jax.Array, noise: DrawNoise, predict: KeyedPredict, key: jax.Array
    ) -> jax.Array:
        sigma, next_sigma = row
        velocity = _velocity(objective, predict, x, sigma, key)
        euler_x = x + (next_sigma - sigma) * velocity

        def correct() -> jax.Array:
            second_key = jax.random.fold_in(key, 1)
            second = _velocity(objective, predict, euler_x, next_sigma, second_key)
            return x + (next_sigma - sigma) * (velocity + second) / 2

        return jax.lax.cond(next_sigma > 0, correct, lambda: euler_x)

    return _flow_steps(objective, config), step


def dpmpp_2m(
    objective: RectifiedFlow | GaussianDiffusion, config: SamplerConfig
) -> tuple[Any, Step]:
    """Return DPM-Solver++(2M): second order, with one prediction per step.

    Each step extrapolates the predicted data linearly in log(α/σ) from this step and the one
    before. The first step has none before, and the last one ends at σ = 0, where its order is one.

    Source: Lu et al., arXiv 2211.01095, algorithm 2.
    """
    if isinstance(objective, RectifiedFlow):
        sigma = objective.schedule(config.steps)
        alpha = 1 - sigma
        inputs: Any = sigma[:-1].astype(np.float32)
        predict_data = _flow_data(objective)
    else:
        tables, inputs = _gaussian_steps(objective, config)
        alpha = np.append(np.sqrt(tables.alphas_cumprod[::-1]), 1.0)
        sigma = np.append(np.sqrt(1 - tables.alphas_cumprod[::-1]), 0.0)
        predict_data = _gaussian_data(tables, config.clip)
    with np.errstate(divide="ignore"):
        # Infinite at both ends, where α or σ is 0: the data are then predicted at the first order.
        h = np.diff(np.log(alpha / sigma))
    gain = -alpha[1:] * np.expm1(-h)
    extrapolate = np.zeros_like(h)
    extrapolate[1:-1] = gain[1:-1] * h[1:-1] / (2 * h[:-2])
    coefficients = np.stack([sigma[1:] / sigma[:-1], gain, extrapolate], axis=1).astype(np.float32)

    def step(
        row: tuple[Any, tuple[jax.Array, ...]],
        state: Pair,
        noise: DrawNoise,
        predict: KeyedPredict,
        key: jax.Array,
    ) -> Pair:
        (inputs, (keep, gain, extrapolate)), (x, earlier) = row, state
        data = predict_data(inputs, x, predict, key)
        return keep * x + gain * data + extrapolate * (data - earlier), data

    return (inputs, tuple(coefficients.T)), step


# (row, x, predict, key) -> predicted data
PredictData = Callable[[Any, jax.Array, KeyedPredict, jax.Array], jax.Array]


def _flow_data(objective: RectifiedFlow) -> PredictData:
    def predict_data(
        sigma: jax.Array, x: jax.Array, predict: KeyedPredict, key: jax.Array
    ) -> jax.Array:
        return x - sigma * _velocity(objective, predict, x, sigma, key)

    return predict_data


def _gaussian_data(tables: Tables, clip: bool) -> PredictData:
    def predict_data(row: Pair, x: jax.Array, predict: KeyedPredict, key: jax.Array) -> jax.Array:
        index, timestep = row
        predicted, _ = jnp.split(predict(x, _repeat(timestep, x), key), 2, axis=-1)
        data = predicted_data(tables, predicted, x, _repeat(index, x))
        return jnp.clip(data, -1, 1) if clip else data

    return predict_data


def _velocity(
    objective: RectifiedFlow,
    predict: KeyedPredict,
    x: jax.Array,
    sigma: jax.Array,
    key: jax.Array,
) -> jax.Array:
    return objective.velocity(predict(x, _repeat(1000 * sigma, x), key), x, sigma)


def _flow_steps(objective: RectifiedFlow, config: SamplerConfig) -> tuple[np.ndarray, np.ndarray]:
    sigmas = objective.schedule(config.steps).astype(np.float32)
    return sigmas[:-1], sigmas[1:]


def _repeat(value: jax.Array, x: jax.Array) -> jax.Array:
    """Repeat a number for each sample of x: [] -> [B]."""
    return jnp.full(x.shape[:1], value)


@dataclasses.dataclass(frozen=True)
class Sampler:
    """A sampler, as it is registered in `SAMPLERS`.

    Attributes:
      objective: class of the objectives that it can sample, or several.
      build: (objective, config) -> (rows, step), see the top of this file.
      predictions_per_step: largest number of model predictions in one step, for analytic FLOPs.
      memory: x -> what the first step gets as memory, with the structure of that of all others;
        None if steps only see x.
    """

    objective: type[Objective] | tuple[type[Objective], ...]
    build: Callable[[Any, SamplerConfig], tuple[Any, Step]]
    predictions_per_step: int = 1
    memory: Callable[[jax.Array], Any] | None = None


# `config.sampling.sampler` -> sampler
SAMPLERS = {
    "ddpm": Sampler(GaussianDiffusion, ddpm),
    "ddim": Sampler(GaussianDiffusion, ddim),
    "euler": Sampler(RectifiedFlow, euler),
    "heun": Sampler(RectifiedFlow, heun, predictions_per_step=2),
    "dpmpp_2m": Sampler((GaussianDiffusion, RectifiedFlow), dpmpp_2m, memory=jnp.zeros_like),
}


def check_sampler(config: SamplerConfig, objective: Objective) -> None:
    """Check that the sampler exists, fits the objective and supports the number of steps.

    Raises:
      UserError: it does not; the message names the field.
    """
    if config.sampler not in SAMPLERS:
        raise UserError(
            f"sampler={config.sampler!r} is unknown: choose one of {', '.join(SAMPLERS)}"
        )
    sampler = SAMPLERS[config.sampler]
    if not isinstance(objective, sampler.objective):
        suitable = [
            name for name, other in SAMPLERS.items() if isinstance(objective, other.objective)
        ]
        raise UserError(
            f"sampler={config.sampler!r} does not sample a {type(objective).__name__}: "
            f"choose one of {', '.join(suitable)}"
        )
    sampler.build(objective, config)


def sample_noise(
    key: jax.Array, sample: jax.Array, stream: jax.Array | int, shape: tuple[int, ...]
) -> jax.Array:
    """Return standard normal noise [B, *shape].

    The noise of a sample depends on the key, the stream and its index only, and not on the rest of
    the batch.

    Args:
      key: a PRNG key.
      sample: [B] int32 sample indices.
      stream: 0 for the initial noise, otherwise the sampler step plus 1.
      shape: of one sample.
    """
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
    """Generate samples.

    Args:
      objective: with which the model was trained.
      config: sampler and number of steps.
      predict: (x, timestep [B], key) -> output, including guidance.
      key: a PRNG key. A sample depends on the key and its index only.
      sample_index: [B] int32 index of each sample in the request.
      shape: of one sample, (H, W, C).

    Returns:
      [B, H, W, C] float32.

    Example:
      >>> def predict(x, timestep, key):
      ...     return jnp.zeros_like(x)  # a velocity of zero, so the noise stays as it is
      >>> config = SamplerConfig(sampler="euler", steps=4)
      >>> index = jnp.arange(3)
      >>> sample(RectifiedFlow(), config, predict, jax.random.key(0), index, (8, 8, 1)).shape
      (3, 8, 8, 1)
    """
    x, _ = sample_and_observe(objective, config, predict, key, sample_index, shape)
    return x


def sample_and_observe(
    objective: Objective,
    config: SamplerConfig,
    predict: KeyedPredict,
    key: jax.Array,
    sample_index: jax.Array,
    shape: tuple[int, ...],
    observe: Callable[[jax.Array, jax.Array, jax.Array], Any] = lambda x, timestep, key: None,
) -> tuple[jax.Array, Any]:
    """Generate samples as `sample` does, and observe the model at each sampler step.

    Args:
      objective, config, predict, key, sample_index, shape: as for `sample`.
      observe: (x, timestep [B], key) -> pytree of arrays, called with the arguments of the first
        prediction of each sampler step.

    Returns:
      Samples [B, H, W, C] float32, and the results of `observe` with a leading axis of S sampler
      steps.
    """
    sampler = SAMPLERS[config.sampler]
    rows, step = sampler.build(objective, config)
    noise_key, model_key = jax.random.split(key)

    def body(state: Any, inputs: tuple[jax.Array, Any]) -> tuple[Any, Any]:
        number, row = inputs

        def noise() -> jax.Array:
            return sample_noise(noise_key, sample_index, number + 1, shape)

        calls: list[tuple[jax.Array, jax.Array, jax.Array]] = []

        def recorded(x: jax.Array, timestep: jax.Array, key: jax.Array) -> jax.Array:
            calls.append((x, timestep, key))
            return predict(x, timestep, key)

        state = step(row, state, noise, recorded, jax.random.fold_in(model_key, number))
        # Later predictions of a step may be traced inside `lax.cond`, as in Heun's method, so their
        # arguments can't be used here.
        return state, observe(*calls[0])

    x = sample_noise(noise_key, sample_index, 0, shape)
    numbered = jnp.arange(config.steps), jax.tree.map(jnp.asarray, rows)
    state = (x, sampler.memory(x)) if sampler.memory else x
    state, observed = jax.lax.scan(body, state, numbered)
    return (state[0] if sampler.memory else state), observed

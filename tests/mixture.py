"""A mixture of Gaussians whose best prediction is known, to measure the error of samplers.

Axes: N samples, K components, D = 2 coordinates, as an image of 1×1 pixel with two channels.
"""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.integrate import solve_ivp
from scipy.special import softmax

from tp_jax.diffusion import SamplerConfig
from tp_jax.diffusion.flow import RectifiedFlow
from tp_jax.diffusion.gaussian import GaussianDiffusion
from tp_jax.diffusion.samplers import SAMPLERS

MEANS = np.array([[0.8, 0.2], [-0.6, 0.7], [-0.2, -0.9]])  # [K, D]
WEIGHTS = np.array([0.5, 0.3, 0.2])  # [K]
STD = 0.35  # of every component
OBJECTIVES = {"flow": RectifiedFlow(shift=1.0), "gaussian": GaussianDiffusion()}


def moments():
    """Mean [D] and covariance [D, D] of the mixture."""
    mean = WEIGHTS @ MEANS
    centred = MEANS - mean
    return mean, STD**2 * np.eye(2) + (WEIGHTS[:, None] * centred).T @ centred


def best_data(x, alpha, sigma, xp=np):
    """E[data | x] [N, D] for x = alpha·data + sigma·noise [N, D]."""
    variance = (alpha * STD) ** 2 + sigma**2
    away = x[:, None] - alpha * MEANS
    logits = xp.log(xp.asarray(WEIGHTS)) - xp.square(away).sum(-1) / (2 * variance)
    weights = softmax(logits, -1) if xp is np else jax.nn.softmax(logits, -1)
    return (weights[..., None] * (MEANS + alpha * STD**2 / variance * away)).sum(1)


def predict_of(objective):
    """(x [N, 1, 1, D], timestep [N], key) -> the output of a perfect model."""
    if isinstance(objective, RectifiedFlow):

        def velocity(x, timestep, key):
            sigma, x = timestep[0] / 1000, x[:, 0, 0]
            # The flow starts with pure noise, of which the data are predicted by their mean.
            data = best_data(x, 1 - sigma, sigma, jnp)
            return ((x - data) / sigma)[:, None, None]

        return velocity
    alphas_cumprod = jnp.asarray(objective.tables().alphas_cumprod)

    def noise(x, timestep, key):
        found, x = alphas_cumprod[timestep[0].astype(int)], x[:, 0, 0]
        alpha, sigma = jnp.sqrt(found), jnp.sqrt(1 - found)
        output = (x - alpha * best_data(x, alpha, sigma, jnp)) / sigma
        # The last two channels choose the smaller variance of ancestral sampling.
        return jnp.concatenate([output, -jnp.ones_like(output)], -1)[:, None, None]

    return noise


def exact(kind, start):
    """The ends [N, D] of the exact flow from noise [N, D], by an adaptive method of order 8."""
    if kind == "flow":

        def slope(sigma, flat):
            x = flat.reshape(start.shape)
            return ((x - best_data(x, 1 - sigma, sigma)) / sigma).ravel()

        return _solve(slope, (1.0, 1e-6), start)
    # With x / alpha and the ratio sigma / alpha, the slope of the flow is the predicted noise.
    last = OBJECTIVES[kind].tables().alphas_cumprod[-1]

    def slope(ratio, flat):
        alpha = 1 / np.sqrt(1 + ratio**2)
        x = alpha * flat.reshape(start.shape)
        return ((x - alpha * best_data(x, alpha, ratio * alpha)) / (ratio * alpha)).ravel()

    return _solve(slope, (np.sqrt(1 / last - 1), 1e-6), start / np.sqrt(last))


def _solve(slope, span, start):
    found = solve_ivp(slope, span, start.ravel(), method="DOP853", rtol=1e-9, atol=1e-9)
    return found.y[:, -1].reshape(start.shape)


def ours(kind, sampler, steps, start, eta=0.0, seed=0):
    """The ends [N, D] of one of our samplers from noise [N, D]."""
    objective, entry = OBJECTIVES[kind], SAMPLERS[sampler]
    rows, step = entry.build(objective, SamplerConfig(sampler, steps, eta=eta))
    predict = predict_of(objective)

    @jax.jit
    def run(x, rows):
        def body(state, inputs):
            row, key = inputs
            noise = lambda: jax.random.normal(key, x.shape)  # noqa: E731
            return step(row, state, noise, predict, key), None

        state = (x, entry.memory(x)) if entry.memory else x
        state, _ = jax.lax.scan(body, state, (rows, jax.random.split(jax.random.key(seed), steps)))
        return state[0] if entry.memory else state

    x = jnp.asarray(start, jnp.float32)[:, None, None]
    return np.asarray(run(x, jax.tree.map(jnp.asarray, rows)))[:, 0, 0]


def error_of_ends(found, wanted):
    """Root mean square distance of ends [N, D]."""
    return float(np.sqrt(np.square(found - wanted).sum(-1).mean()))


def error_of_covariance(found):
    """Relative error of the covariance of samples [N, D]."""
    wanted = moments()[1]
    return float(np.linalg.norm(np.cov(found.T) - wanted) / np.linalg.norm(wanted))

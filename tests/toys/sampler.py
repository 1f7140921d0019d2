"""The midpoint method for rectified flow."""

import jax
import numpy as np

from tp_jax.diffusion.flow import RectifiedFlow
from tp_jax.diffusion.samplers import Sampler


def midpoint(objective, config):
    sigmas = objective.schedule(config.steps).astype(np.float32)

    def velocity(predict, x, sigma, key):
        timestep = jax.numpy.full(x.shape[:1], 1000 * sigma)
        return objective.velocity(predict(x, timestep, key), x, sigma)

    def step(row, x, noise, predict, key):
        sigma, following = row
        middle = (sigma + following) / 2
        half = x + (middle - sigma) * velocity(predict, x, sigma, key)
        return x + (following - sigma) * velocity(predict, half, middle, key)

    return (sigmas[:-1], sigmas[1:]), step


MIDPOINT = Sampler(RectifiedFlow, midpoint, predictions_per_step=2)

"""The order of convergence of every sampler, on a mixture of Gaussians that is known exactly."""

import functools

import mixture
import numpy as np
import pytest

from tp_jax.diffusion.samplers import SAMPLERS

# (objective, sampler) -> order
ORDERS = {
    ("flow", "euler"): 1, ("flow", "heun"): 2, ("flow", "dpmpp_2m"): 2,
    ("gaussian", "ddim"): 1, ("gaussian", "dpmpp_2m"): 2,
}  # fmt: skip
START = np.random.default_rng(0).normal(size=(128, 2))


@functools.cache
def exact(kind):
    return mixture.exact(kind, START)


def test_every_sampler_has_an_order_or_draws_noise():
    assert {sampler for _, sampler in ORDERS} | {"ddpm"} == set(SAMPLERS)


@pytest.mark.parametrize(("kind", "sampler"), ORDERS)
def test_order_of_convergence(kind, sampler):
    steps = np.array([32, 64, 128])
    errors = [
        mixture.error_of_ends(mixture.ours(kind, sampler, int(s), START), exact(kind))
        for s in steps
    ]
    order = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    wanted = ORDERS[kind, sampler]
    assert wanted - 0.3 < order < wanted + 0.6


@pytest.mark.parametrize(
    ("kind", "sampler", "eta"),
    [("flow", "euler", 1.0), ("gaussian", "ddim", 1.0), ("gaussian", "ddpm", 0.0)],
)
def test_noisy_samplers_converge_to_the_distribution(kind, sampler, eta):
    start = np.random.default_rng(1).normal(size=(20_000, 2))
    few, many = (
        mixture.error_of_covariance(mixture.ours(kind, sampler, steps, start, eta))
        for steps in (10, 160)
    )
    assert many < 0.08 and many < few / 4

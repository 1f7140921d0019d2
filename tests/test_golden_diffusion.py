"""Compare objectives and samplers with public torch code (see tests/golden/README.md)."""

import functools
import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tp_jax.diffusion import SamplerConfig
from tp_jax.diffusion.flow import RectifiedFlow
from tp_jax.diffusion.gaussian import GaussianDiffusion, posterior, respaced_timesteps
from tp_jax.diffusion.samplers import SAMPLERS

GOLDEN = pathlib.Path(__file__).parent / "golden"
GAUSSIAN, FLOW = GaussianDiffusion(), RectifiedFlow()
STAND_IN = (0.9, 0.1, 0.2, 0.05)
RESPACED = [
    ("250", 250, "even"),
    ("50", 50, "even"),
    ("25", 25, "even"),
    ("10", 10, "even"),
    ("ddim50", 50, "stride"),
]


@functools.cache
def golden(name):
    with np.load(GOLDEN / f"{name}.npz") as file:
        return dict(file)


def channels_last(x):
    """[..., C, H, W] -> [..., H, W, C]."""
    return np.moveaxis(x, -3, -1)


def stand_in(x, timestep, coefficients=STAND_IN):
    """The formula that replaces a network for noise and variance in the golden files."""
    a, b, c, d = coefficients
    t = timestep.reshape(-1, 1, 1, 1)
    return jnp.concatenate([a * x + b * jnp.sin(t / 100), c * x - d * t / 1000], axis=-1)


def velocity(x, timestep):
    """The formula that replaces a network for velocity in the golden files."""
    return 0.5 * x + 0.1 * timestep.reshape(-1, 1, 1, 1) / 1000


def trajectory(objective, config, predict, start, noise):
    """All intermediate samples [steps, B, H, W, C] of a sampler with this noise."""
    sampler = SAMPLERS[config.sampler]
    steps, step = sampler.build(objective, config)

    def body(state, inputs):
        row, noise = inputs
        model = lambda x, timestep, key: predict(x, timestep)  # noqa: E731
        state = step(row, state, lambda: noise, model, jax.random.key(0))
        return state, state[0] if sampler.memory else state

    rows, state = jax.tree.map(jnp.asarray, steps), jnp.asarray(start)
    if sampler.memory:
        state = state, sampler.memory(state)
    return jax.lax.scan(body, state, (rows, jnp.asarray(noise)))[1]


def gaussian_trajectory(noise, **config):
    start = channels_last(golden("gaussian")["sample_start"])
    return trajectory(GAUSSIAN, SamplerConfig(**config), stand_in, start, channels_last(noise))


def assert_close(ours, theirs, atol, rtol=0.0):
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    print(f"absolute error {np.abs(ours - theirs).max():.1e} of {np.abs(theirs).max():.3g}")
    np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", ["betas", "alphas_cumprod", "posterior_log_variance_clipped"])
def test_gaussian_schedule(name):
    assert_close(getattr(GAUSSIAN.tables(), name), golden("gaussian")[name], atol=0, rtol=1e-12)


@pytest.mark.parametrize(("name", "steps", "spacing"), RESPACED)
def test_respaced_timesteps(name, steps, spacing):
    timesteps = respaced_timesteps(1000, steps, spacing)
    np.testing.assert_array_equal(timesteps, golden("gaussian")[f"timesteps_{name}"])
    tables = GAUSSIAN.tables(timesteps)
    assert_close(tables.betas, golden("gaussian")[f"betas_{name}"], atol=0, rtol=1e-11)


def test_gaussian_noised_data():
    x, noise, x_t = (channels_last(golden("gaussian")[f"train_{n}"]) for n in ("x0", "noise", "xt"))
    assert_close(GAUSSIAN.add_noise(x, noise, golden("gaussian")["train_t"]), x_t, atol=1e-6)


def gaussian_losses(coefficients):
    arrays = golden("gaussian")
    x, noise = channels_last(arrays["train_x0"]), channels_last(arrays["train_noise"])
    predict = functools.partial(stand_in, coefficients=coefficients)
    return GAUSSIAN.losses(predict, jnp.asarray(x), jnp.asarray(noise), arrays["train_t"])


@pytest.mark.parametrize("name", ["mse", "vb", "loss"])
def test_gaussian_losses(name):
    losses = jax.jit(gaussian_losses)(jnp.array(STAND_IN))
    # At large t the variational bound is a small difference of large numbers.
    assert_close(losses[name], golden("gaussian")[f"train_{name}"], atol=1e-6, rtol=1e-5)


def test_variational_bound_trains_only_the_variance():
    gradient = jax.jit(jax.grad(lambda c: gaussian_losses(c)["loss"].mean()))(jnp.array(STAND_IN))
    assert_close(gradient, golden("gaussian")["train_loss_grad"], atol=1e-6, rtol=1e-5)


def test_ddpm_with_10_steps():
    arrays = golden("gaussian")
    ours = gaussian_trajectory(arrays["sample_noise_10"], sampler="ddpm", steps=10)
    assert_close(ours, channels_last(arrays["p_10"]), atol=1e-5)


def test_data_predicted_at_each_ddpm_step():
    arrays = golden("gaussian")
    timesteps = respaced_timesteps(1000, 10, "even")
    # The input of the sampler at each step; timesteps decrease.
    inputs = channels_last(np.concatenate([arrays["sample_start"][None], arrays["p_10"][:-1]]))
    index = np.repeat(np.arange(10)[::-1], inputs.shape[1])

    @jax.jit
    def predicted_data(x_t):
        output = stand_in(x_t, timesteps[index].astype(np.float32))
        return posterior(GAUSSIAN.tables(timesteps), output, x_t, index)[2]

    ours = predicted_data(inputs.reshape(-1, *inputs.shape[2:])).reshape(inputs.shape)
    assert_close(ours, channels_last(arrays["p_10_x0"]), atol=1e-5)


def test_ddpm_with_250_steps():
    noise = np.random.RandomState(250).randn(250, 2, 2, 4, 4).astype(np.float32)
    ours = gaussian_trajectory(noise, sampler="ddpm", steps=250)
    assert_close(ours[-1], channels_last(golden("gaussian")["p_250"]), atol=1e-5)


def test_ddim_with_50_steps_without_noise():
    expected = channels_last(golden("gaussian")["ddim50_eta0"])
    # With eta = 0 this noise must have no effect.
    noise = np.ones((50, 2, 2, 4, 4), np.float32)
    ours = gaussian_trajectory(noise, sampler="ddim", steps=50, spacing="stride", eta=0.0)
    assert_close(ours, expected, atol=2e-5)


def test_ddim_with_10_steps_and_noise():
    arrays = golden("gaussian")
    ours = gaussian_trajectory(arrays["sample_noise_10"], sampler="ddim", steps=10, eta=1.0)
    assert_close(ours, channels_last(arrays["ddim_10_eta1"]), atol=2e-5)


def test_flow_training_timesteps():
    sigmas = FLOW.shift_sigma(np.arange(1000, 0, -1) / 1000)
    assert_close(sigmas, golden("flow")["train_sigmas"], atol=0, rtol=1e-6)
    assert_close(1000 * sigmas, golden("flow")["train_timesteps"], atol=0, rtol=1e-6)


@pytest.mark.parametrize("steps", [28, 10])
def test_flow_sampling_schedule(steps):
    sigmas = FLOW.schedule(steps)
    assert_close(sigmas, golden("flow")[f"sigmas_{steps}"], atol=0, rtol=1e-6)
    assert_close(1000 * sigmas[:-1], golden("flow")[f"timesteps_{steps}"], atol=0, rtol=1e-6)


def test_euler_with_10_steps():
    arrays = golden("flow")
    start, expected = channels_last(arrays["euler_start"]), channels_last(arrays["euler_10"])
    config = SamplerConfig(sampler="euler", steps=10)
    ours = trajectory(FLOW, config, velocity, start, np.ones_like(expected))
    assert_close(ours, expected, atol=1e-5)


def test_heun_equals_a_plain_loop():
    def curved(x, timestep):
        t = timestep.reshape(-1, 1, 1, 1) / 1000
        return x * (1 + t) / (1 + x * x) + 0.1 * t

    start = channels_last(golden("flow")["euler_start"])
    sigmas = golden("flow")["sigmas_10"].astype(np.float64)
    x, expected = start.astype(np.float64), []
    for sigma, following in itertools.pairwise(sigmas):
        slope = curved(x, 1000 * sigma)
        if following > 0:
            ahead = x + (following - sigma) * slope
            slope = (slope + curved(ahead, 1000 * following)) / 2
        x = x + (following - sigma) * slope
        expected.append(x)

    config = SamplerConfig(sampler="heun", steps=10)
    ours = trajectory(FLOW, config, curved, start, np.ones((10, *start.shape), np.float32))
    assert_close(ours, np.stack(expected), atol=1e-5)


def curved_noise(x, timestep):
    """The formula that replaces a network for noise in solvers.npz; the variance isn't used."""
    noise = x / (1 + 0.002 * x * x) + 0.001 * jnp.sin(timestep.reshape(-1, 1, 1, 1) / 100)
    return jnp.concatenate([noise, jnp.zeros_like(noise)], axis=-1)


def curved_velocity(x, timestep):
    """The formula that replaces a network for velocity in solvers.npz."""
    t = timestep.reshape(-1, 1, 1, 1) / 1000
    return x * (1 + t) / (1 + x * x) + 0.1 * t


@pytest.mark.parametrize("steps", [10, 20])
def test_dpmpp_2m_of_gaussian_diffusion(steps):
    arrays = golden("solvers")
    timesteps = respaced_timesteps(1000, steps, "even")
    np.testing.assert_array_equal(timesteps[::-1], arrays[f"timesteps_{steps}"])
    config, expected = SamplerConfig("dpmpp_2m", steps), channels_last(arrays[f"gaussian_{steps}"])
    start = channels_last(arrays["start"])
    ours = trajectory(GAUSSIAN, config, curved_noise, start, np.ones_like(expected))
    assert_close(ours, expected, atol=1e-4)


@pytest.mark.parametrize("steps", [10, 20])
def test_dpmpp_2m_of_flow(steps):
    arrays = golden("solvers")
    config, expected = SamplerConfig("dpmpp_2m", steps), channels_last(arrays[f"flow_{steps}"])
    start = channels_last(arrays["start"])
    ours = trajectory(FLOW, config, curved_velocity, start, np.ones_like(expected))
    assert_close(ours, expected, atol=1e-4)


def test_euler_with_noise_is_the_first_order_of_sde_dpm_solver():
    arrays = golden("solvers")
    expected = channels_last(arrays["flow_sde_10"])
    start, noise = channels_last(arrays["start"]), channels_last(arrays["noise"])
    config = SamplerConfig("euler", steps=10, eta=1.0)
    ours = trajectory(FLOW, config, curved_velocity, start, noise)
    assert_close(ours, expected, atol=1e-4)


def test_euler_with_little_noise_is_nearly_euler():
    start, noise = (
        channels_last(golden("solvers")["start"]),
        channels_last(golden("solvers")["noise"]),
    )
    plain, nearly = (
        trajectory(FLOW, SamplerConfig("euler", 10, eta=eta), curved_velocity, start, noise)
        for eta in (0.0, 1e-4)
    )
    assert_close(nearly, plain, atol=2e-3)
    assert np.abs(nearly - plain).max() > 1e-5

"""Pooled latents, and rectified flow with a model that predicts the data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_configs import tiny_shapes

from tp_jax.diffusion import SamplerConfig
from tp_jax.diffusion.flow import RectifiedFlow
from tp_jax.diffusion.samplers import sample as draw
from tp_jax.latents.codec import Pooling, load_codec
from tp_jax.messages.errors import UserError
from tp_jax.worlds.shapes.checker import find_objects, same_contents
from tp_jax.worlds.shapes.render import render
from tp_jax.worlds.shapes.scenes import training_scene


def test_pooling_encodes_to_means_and_decodes_by_enlarging():
    pooling = Pooling(4)
    ramp = np.broadcast_to(np.arange(8, dtype=np.float32)[None, :, None, None], (1, 8, 12, 3))
    latents = np.asarray(pooling.encode(ramp, None, 0, 0))
    np.testing.assert_allclose(latents[0, :, :, 0], [[1.5] * 3, [5.5] * 3])
    flat = np.full((2, 3, 5, 3), 0.25, np.float32)
    np.testing.assert_allclose(pooling.decode(flat), np.full((2, 12, 20, 3), 0.25), atol=1e-6)
    config = tiny_shapes()
    config.autoencoder.path = "somewhere"
    with pytest.raises(UserError, match="path=somewhere and .pool=2: set only one of the two"):
        load_codec(config.autoencoder, None)


def test_the_shape_checker_reads_pooled_pictures():
    pooling, wrong = Pooling(4), 0
    for index in range(40):
        scene = training_scene(index, seed=3)
        picture = pooling.decode(pooling.encode(render(scene, 64)[None], None, 0, 0))
        found = find_objects(np.clip(np.asarray(picture)[0], 0, 1))
        wrong += not same_contents(found, scene.objects, 2 / 64)
    assert wrong <= 1


def test_data_prediction_has_the_loss_of_velocity_prediction():
    flow, data_flow = RectifiedFlow(), RectifiedFlow(prediction="data")
    rng = np.random.default_rng(0)
    x, noise = (jnp.asarray(rng.standard_normal((4, 2, 2, 1)), jnp.float32) for _ in range(2))
    times = jnp.array([0.02, 0.3, 0.7, 0.95])
    off = 0.1 * jnp.asarray(rng.standard_normal(x.shape), jnp.float32)
    # A velocity error of e corresponds to a data error of -σ·e.
    by_data = data_flow.losses(
        lambda x_t, t: x - t[:, None, None, None] / 1000 * off, x, noise, times
    )
    by_velocity = flow.losses(lambda x_t, t: noise - x + off, x, noise, times)
    np.testing.assert_allclose(by_data["loss"][1:], by_velocity["loss"][1:], rtol=1e-4)
    # Below σ = 0.05 the data error is divided by 0.05 instead of σ.
    true = 0.02 * off[0] / 0.05
    np.testing.assert_allclose(by_data["loss"][0], jnp.mean(true**2), rtol=1e-4)


@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_samplers_end_at_the_predicted_data(sampler):
    target = jnp.asarray(np.random.default_rng(1).standard_normal((1, 2, 2, 1)), jnp.float32)
    out = draw(
        RectifiedFlow(prediction="data"),
        SamplerConfig(sampler=sampler, steps=20),
        lambda x, t, key: jnp.broadcast_to(target, x.shape),
        jax.random.key(0),
        jnp.arange(3),
        (2, 2, 1),
    )
    np.testing.assert_allclose(out, jnp.broadcast_to(target, out.shape), atol=1e-4)


def test_an_unknown_prediction_type_is_refused():
    with pytest.raises(UserError, match="prediction='noise': choose velocity or data"):
        RectifiedFlow(prediction="noise")

"""Decoding a frame from each latent step, and the loss on these frames."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import tiny_config
from small_configs import tiny_frozenlake
from thinking_reference import thinking_attention
from tiny_models import example, random_params

from tp_jax.diffusion.flow import RectifiedFlow
from tp_jax.messages.errors import UserError
from tp_jax.models import DiTConfig, build_model
from tp_jax.models.dit import DiTBase
from tp_jax.models.dit_config import check_frames
from tp_jax.models.latent_step_outputs import decode_latent_steps
from tp_jax.parallel.mesh import create_mesh
from tp_jax.parallel.randomness import stream_key
from tp_jax.performance.programs import trace
from tp_jax.thinking import ThinkingConfig
from tp_jax.thinking.gate import GateRandomness
from tp_jax.thinking.layer import ThinkingOptions
from tp_jax.train.loss import make_gradient, make_loss
from tp_jax.train.state import make_state
from tp_jax.train.step import make_train_step

CONFIG = DiTConfig(
    image_size=4, channels=2, out_channels=2, patch=2, depth=3, width=8, heads=2, num_classes=0,
    frame="channels", thinking=ThinkingConfig(
        layers=(1,), rank=2, experts=2, gate_width=4, latent_steps=4
    ),
)  # fmt: skip


@pytest.mark.parametrize("frame", [pytest.param("channels", marks=pytest.mark.slow), "tokens"])
def test_decoded_frame_equals_that_of_a_layer_that_ends_at_the_step(frame):
    model = build_model(dataclasses.replace(CONFIG, frame=frame))
    params, (x, timestep, condition) = random_params(model), example(model)
    frames, routing_stats = jax.jit(
        lambda p: decode_latent_steps(model, p, x, timestep, condition)
    )(params)
    assert frames.shape == (4, 3, 4, 4, 2) and frames.dtype == jnp.float32
    assert routing_stats[1].entropy.shape == (4,)
    last, _ = model.apply({"params": params}, x, timestep, condition)
    np.testing.assert_allclose(frames[-1], last, atol=1e-5)
    layer = params["thinking"]["layer_1"]
    for step in (1, 2, 3):
        # With a base that returns zeros, the slow reference returns the attention of its last step.
        def ended(block, step=step):
            found = thinking_attention(
                block.vision, block.scale, block.shift, block.y.time, block.y.condition, layer,
                lambda tokens: (0 * tokens,) * 3, heads=2, latent_steps=step,
            )  # fmt: skip
            return found["vision"], None, None

        # Rematerialization takes only replacements of attention that are pytrees.
        base = DiTBase(dataclasses.replace(model.config, remat="none"))
        wanted, _ = base.apply(
            {"params": params["base"]}, x, timestep, condition["label"], {1: ended},
            condition["frame"],
        )  # fmt: skip
        np.testing.assert_allclose(frames[step - 1], wanted, atol=1e-4 * np.abs(wanted).max())
        assert np.abs(frames[step - 1] - frames[-1]).max() > 1e-3


@pytest.mark.slow
def test_more_latent_steps_do_not_change_the_earlier_frames():
    model = build_model(CONFIG)
    params, inputs = random_params(model), example(model)

    def decode(steps):
        options = ThinkingOptions(latent_steps=steps)
        return decode_latent_steps(model, params, *inputs, options)[0]

    frames = {steps: decode(steps) for steps in (1, 2, 6)}
    assert [len(frames[steps]) for steps in frames] == [1, 2, 6]
    np.testing.assert_allclose(frames[6][0], frames[2][0], atol=1e-5)


@pytest.mark.parametrize("frame", ["channels", "tokens"])
def test_model_output_is_added_to_the_given_frame(frame):
    model = build_model(dataclasses.replace(CONFIG, frame=frame))
    params, (x, timestep, condition) = random_params(model), example(model)
    params["base"]["final"]["out"] = jax.tree.map(jnp.zeros_like, params["base"]["final"]["out"])
    out, _ = model.apply({"params": params}, x, timestep, condition)
    np.testing.assert_array_equal(out, condition["frame"])
    # The output also depends on the frame.
    params, other = random_params(model), condition["frame"] + 1
    outputs = [
        model.apply({"params": params}, x, timestep, condition | {"frame": given})[0] - given
        for given in (condition["frame"], other)
    ]
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-3


def test_every_frame_has_a_gradient_for_gate_and_experts():
    model = build_model(CONFIG)
    params, inputs = random_params(model), example(model)
    options = ThinkingOptions(GateRandomness(jax.random.key(2), jnp.arange(3)))

    def loss(params, step):
        frames, _ = decode_latent_steps(model, params, *inputs, options)
        return jnp.square(frames[step]).mean()

    gradient = jax.jit(jax.grad(loss))
    for step in range(4):
        grads = gradient(params, step)["thinking"]["layer_1"]
        for leaf in (grads["experts"]["lora_a"], grads["gate"]["out"]["kernel"]):
            assert np.isfinite(leaf).all() and np.abs(leaf).max() > 1e-8


@pytest.mark.parametrize("moves", [1, 2, 4])
def test_loss_compares_the_frame_after_each_move(moves):
    config = tiny_config()
    config.frozenlake.frames_weight = 0.5
    model, objective = build_model(CONFIG), RectifiedFlow(prediction="data", shift=1.0)
    params, (_, _, condition) = random_params(model), example(model)
    frames = jax.random.normal(jax.random.key(5), (3, 4, 4, 4, 2))
    batch = {"x": frames[:, -1], "frames": frames[:, :-1], "condition": condition}
    batch["index"] = jnp.arange(3)
    calls, original_losses = [], objective.losses

    def losses(predict, x, noise, times):
        calls.append((x, objective.add_noise(x, noise, times), times))
        return original_losses(predict, x, noise, times)

    recording = types.SimpleNamespace(sample_times=objective.sample_times, losses=losses)
    total, metrics = make_loss(model, recording, config)(params, batch, 7, moves)
    ((x, x_t, times),) = calls
    np.testing.assert_array_equal(x, frames[:, moves - 1])
    noise = GateRandomness(stream_key(config.seed, "routing", 7), batch["index"])
    decoded, _ = decode_latent_steps(
        model, params, x_t, 1000 * times, condition, ThinkingOptions(noise, moves)
    )
    errors = [np.square(decoded[t] - frames[:, t]).mean() for t in range(moves - 1)]
    np.testing.assert_allclose(metrics["frames"], np.mean(errors) if errors else 0, rtol=1e-4)
    np.testing.assert_allclose(total, metrics["mse"] + 0.5 * metrics["frames"], rtol=1e-5)


@pytest.mark.slow
def test_each_train_step_samples_the_number_of_moves():
    thinking = dataclasses.replace(CONFIG.thinking, latent_steps_range=(1, 4))
    config, model = tiny_config(), build_model(dataclasses.replace(CONFIG, thinking=thinking))
    params, (_, _, condition) = random_params(model), example(model)
    frames = jax.random.normal(jax.random.key(5), (3, 4, 4, 4, 2))
    batch = {"x": frames[:, -1], "frames": frames[:, :-1], "condition": condition}
    batch["index"], optimizer = jnp.arange(3), optax.sgd(1.0)
    objective = RectifiedFlow(prediction="data", shift=1.0)
    step = jax.jit(make_train_step(make_gradient(model, objective, config), optimizer, config))
    loss, drawn = jax.jit(make_loss(model, objective, config), static_argnums=3), set()
    state = make_state(params, optimizer, "all")
    for train_step in range(6):
        now = state.replace(train_step=jnp.int32(train_step))
        metrics = step(now, batch)[1]
        by_moves = [loss(params, batch, train_step, moves)[1] for moves in (1, 2, 3, 4)]
        near = [bool(np.isclose(metrics["frames"], m["frames"], rtol=1e-4)) for m in by_moves]
        assert sum(near) == 1
        assert metrics["latent_steps"] == 1 + near.index(True)
        drawn.add(near.index(True))
    assert len(drawn) > 2


def test_source_without_frames_is_refused_before_compilation():
    config = tiny_frozenlake()
    config.data.source = "synthetic"
    with pytest.raises(UserError, match="config.model.frame='channels', but .* gives no frame"):
        trace(config, "train", create_mesh(config.mesh, jax.devices()[:1]))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(layers=()), r"thinking\.layers=\(\): .* name a block"),
        (dict(latent_steps_range=(1, 5)), "the data have frames for 4 moves"),
    ],
)
def test_frames_need_a_thinking_layer_and_no_more_latent_steps_than_moves(fields, message):
    thinking = dataclasses.replace(CONFIG.thinking, **fields)
    with pytest.raises(UserError, match=message):
        check_frames(dataclasses.replace(CONFIG, thinking=thinking))


def test_frames_train_every_number_of_moves_if_a_range_says_so():
    assert CONFIG.trained_latent_steps == range(4, 5)
    thinking = dataclasses.replace(CONFIG.thinking, latent_steps_range=(1, 4))
    assert dataclasses.replace(CONFIG, thinking=thinking).trained_latent_steps == range(1, 5)

"""Training for any number of latent steps: T drawn per update, and deep supervision."""

import dataclasses
import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_config
from tiny_models import TINY, example, normal, random_params

from tp_jax.diffusion.flow import RectifiedFlow
from tp_jax.messages.errors import UserError
from tp_jax.models import build_model
from tp_jax.models.dit import DiTBase
from tp_jax.models.latent_step_outputs import decode_latent_steps
from tp_jax.models.mmdit import MMDiTBase
from tp_jax.thinking import ThinkingConfig
from tp_jax.thinking.gate import GateRandomness, draw_routing
from tp_jax.thinking.layer import ThinkingOptions
from tp_jax.train.loss import make_gradient, make_loss

BASES = {"dit": DiTBase, "mmdit": MMDiTBase}


def model_of(kind, **fields):
    """A tiny DiT that predicts velocities, or an MMDiT. Blocks 0 and 1 think."""
    fields = dict(layers=(0, 1), latent_steps=3, dispatch="dense") | fields
    thinking = dataclasses.replace(TINY[kind].thinking, **fields)
    # The last block of an MMDiT doesn't change the text.
    depth = 2 if kind == "dit" else 3
    return build_model(
        dataclasses.replace(
            TINY[kind], depth=depth, out_channels=2, remat="none", thinking=thinking
        )
    )


def plain_recursion(block, params, draws, latent_steps):
    """The attention of a latent step without the base projection, in a plain loop."""
    tokens = block.vision
    time, condition = block.y.time, block.y.condition
    for t in range(latent_steps):
        centred = tokens - tokens.mean(-1, keepdims=True)
        normed = centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
        normed = normed * params["norm"]["scale"] + params["norm"]["bias"]
        u = (1 + block.scale[:, None]) * normed + block.shift[:, None]
        gate, logits = params["gate"], 0
        for name, x in dict(token=normed, time=time[:, None], condition=condition[:, None]).items():
            logits = logits + x @ gate[name]["kernel"] + gate[name]["bias"]
        logits = jax.nn.silu(logits) @ gate["out"]["kernel"] + gate["out"]["bias"]
        noisy = logits if draws is None else logits + draws[t]
        m, p = jnp.argmax(noisy, -1), jax.nn.softmax(noisy / 5.0)
        chosen = jnp.take_along_axis(p, m[..., None], -1)
        weight = (
            jnp.ones_like(chosen) if draws is None else 1 + chosen - jax.lax.stop_gradient(chosen)
        )
        # Every token's own pair of matrices: [B, N, D, 3, r] and [B, N, 3, r, D].
        lora_a, lora_b = params["experts"]["lora_a"][m], params["experts"]["lora_b"][m]
        low = jnp.einsum("bnd,bndir->bnir", u, lora_a)
        delta = jnp.einsum("bnir,bnird->bnid", low, lora_b) * weight[..., None]
        attended, text = block.attend(delta)
        tokens = attended + block.vision
    return attended, text, None


def plain_outputs(kind, model, params, inputs, randomness=None):
    """What the rest of the model reads from ã^t of all thinking layers, t = 1 … T-1."""
    x, timestep, condition = inputs
    names = ("label",) if kind == "dit" else ("text", "pooled")
    thinking, outputs = model.config.thinking, []
    for t in range(1, thinking.latent_steps):
        replaced = {
            layer: functools.partial(
                plain_recursion,
                params=params["thinking"][f"layer_{layer}"],
                draws=draw_routing(randomness, thinking, layer, thinking.latent_steps, 4),
                latent_steps=t,
            )
            for layer in thinking.layers
        }
        conditions = [condition[name] for name in names]
        base, variables = BASES[kind](model.config), {"params": params["base"]}
        outputs.append(base.apply(variables, x, timestep, *conditions, replaced)[0])
    return jnp.stack(outputs)


@pytest.mark.parametrize("kind", TINY)
def test_intermediate_outputs_equal_plain_loops_that_stop_there(kind):
    model = model_of(kind)
    params, inputs = random_params(model), example(model, batch=2)
    found, stats = jax.jit(lambda p: decode_latent_steps(model, p, *inputs))(params)
    wanted = jax.jit(lambda p: plain_outputs(kind, model, p, inputs))(params)
    np.testing.assert_allclose(found[:-1], wanted, atol=1e-4 * np.abs(wanted).max())
    last, _ = model.apply({"params": params}, *inputs)
    np.testing.assert_allclose(found[-1], last, atol=1e-5 * np.abs(last).max())
    assert sorted(stats) == [0, 1]
    # No two latent steps give the same output.
    assert min(np.abs(found[a] - found[b]).max() for a, b in [(0, 1), (0, 2), (1, 2)]) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dit", "mmdit"])
def test_deep_supervision_equals_the_sum_of_plain_losses(kind):
    """Values and gradients, with the noise of training, for two thinking layers."""
    config, model = tiny_config(deep_supervision=0.7), model_of(kind)
    config.model.thinking.balance_weight = 0.0
    params, (x, _, condition) = random_params(model), example(model, batch=2)
    batch = {"x": x, "index": jnp.arange(2), "condition": condition}
    key = jax.random.fold_in(jax.random.key(config.seed), zlib.crc32(b"routing"))
    randomness = GateRandomness(jax.random.fold_in(key, 7), batch["index"])
    noise, times = normal(np.random.default_rng(5), x.shape), jnp.array([0.2, 0.6])

    class GivenNoise(RectifiedFlow):
        def sample_times(self, keys):
            return times

        def losses(self, predict, x, _, times):
            return super().losses(predict, x, noise, times)

    def wanted(params):
        sigma = times[:, None, None, None]
        inputs = (1 - sigma) * x + sigma * noise, 1000 * times, condition
        options = ThinkingOptions(randomness)
        last, _ = model.apply({"params": params}, *inputs, options)
        outputs = plain_outputs(kind, model, params, inputs, randomness)
        errors = [jnp.mean((output - (noise - x)) ** 2) for output in outputs]
        return jnp.mean((last - (noise - x)) ** 2) + 0.7 * sum(errors) / 2, sum(errors) / 2

    config.train.condition_dropout = 0.0
    loss = make_loss(model, GivenNoise(), config)
    found = jax.value_and_grad(lambda p: loss(p, batch, jnp.int32(7), 3), has_aux=True)
    (value, metrics), gradients = jax.jit(found)(params)
    (total, supervised), plain = jax.jit(jax.value_and_grad(wanted, has_aux=True))(params)
    np.testing.assert_allclose(value, total, rtol=1e-5)
    np.testing.assert_allclose(metrics["supervised_loss"], supervised, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"] + 0.7 * supervised, total, rtol=1e-5)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(plain))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * largest), gradients, plain
    )
    for leaf in jax.tree.leaves(plain["thinking"]):
        assert jnp.abs(leaf).max() > 1e-6


@pytest.mark.slow
def test_every_update_draws_its_number_of_latent_steps_from_seed_and_train_step():
    config, model = tiny_config(), model_of("dit", layers=(0,), latent_steps_range=(1, 3))
    config.train.condition_dropout = 0.0
    assert model.config.trained_latent_steps == range(1, 4)
    params, (x, _, condition) = random_params(model), example(model, batch=2)
    batch = {"x": x, "index": jnp.arange(2), "condition": condition}
    gradient = jax.jit(make_gradient(model, RectifiedFlow(), config))
    loss = make_loss(model, RectifiedFlow(), config)
    of_steps = jax.jit(jax.grad(lambda *args: loss(*args)[0]), static_argnums=3)
    drawn = []
    for train_step in range(8):
        key = jax.random.fold_in(jax.random.key(config.seed), zlib.crc32(b"latent_steps"))
        key = jax.random.fold_in(key, train_step)
        wanted = 1 + int(jax.random.randint(key, (), 0, 3))
        found, metrics = gradient(params, {}, batch, jnp.int32(train_step))
        assert metrics["latent_steps"] == wanted
        assert not any(name.startswith("expert_kept") for name in metrics)
        drawn.append(wanted)
        if train_step == 0:
            alone = of_steps(params, batch, jnp.int32(train_step), wanted)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, alone)
    assert set(drawn) == {1, 2, 3}


def test_without_a_range_every_update_trains_the_same_number():
    config, model = tiny_config(), model_of("dit")
    params, (x, _, condition) = random_params(model), example(model, batch=2)
    batch = {"x": x, "index": jnp.arange(2), "condition": condition}
    gradient = make_gradient(model, RectifiedFlow(), config)
    text = str(jax.make_jaxpr(gradient)(params, {}, batch, jnp.int32(0)))
    assert "cond[" not in text
    found = jax.eval_shape(gradient, params, {}, batch, jnp.int32(0))[1]
    assert not {"latent_steps", "supervised_loss"} & set(found)
    assert "expert_kept/layer_0" in found


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(latent_steps_range=(2,)), "smallest and the largest number"),
        (dict(latent_steps_range=(3, 1)), "latent_steps_range"),
        (dict(latent_steps_range=(0, 2)), "latent_steps_range"),
        (dict(latent_steps_range=(3, 4)), "leaves out .*latent_steps=2"),
        (dict(latent_steps_range=(1, 3), share_across_steps=False), r"\(1, 3\), but .* 2 latent"),
        (dict(gate_token="raw"), "modulated, unmodulated"),
    ],
)
def test_an_unfit_field_is_named(fields, message):
    with pytest.raises(UserError, match=message):
        ThinkingConfig(**fields)


def test_a_range_may_end_at_the_experts_of_the_last_latent_step():
    thinking = ThinkingConfig(latent_steps_range=(1, 2), share_across_steps=False)
    assert thinking.trained_latent_steps == range(1, 3)
    assert ThinkingConfig().trained_latent_steps == range(2, 3)

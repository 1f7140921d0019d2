"""A single thinking layer, against a plain per-token loop and closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_inputs import (
    HEADS,
    LAYER,
    B,
    D,
    N,
    assert_close,
    gate_randomness,
    layer_inputs,
    our_layer,
    reference_layer,
    small_thinking,
)

from tp_jax.messages.errors import UserError
from tp_jax.models.attention import attention, split_heads
from tp_jax.thinking import ThinkingConfig
from tp_jax.thinking.dispatch import LOCAL_DISPATCHES
from tp_jax.thinking.gate import GateRandomness, draw_routing
from tp_jax.thinking.layer import init_thinking_layer
from tp_jax.thinking.recursion import RoutingStats, balance_loss

# {name: (config, whether text tokens are attended to, whether routing is noisy as in training)}.
VARIANTS = {
    "dit": (small_thinking(), False, True),
    "mmdit": (small_thinking(), True, True),
    "sampling": (small_thinking(temperature=0.7), True, False),
    "one_step": (small_thinking(latent_steps=1), True, True),
    "no_modulation": (small_thinking(modulate=False), False, True),
    "recursed": (small_thinking(base_input="recursed"), True, True),
    "every_step": (small_thinking(base_every_step=True), False, True),
    "every_step_recursed": (
        small_thinking(base_every_step=True, base_input="recursed"),
        True,
        True,
    ),
    "own_experts": (small_thinking(share_across_steps=False), True, True),
    "random": (small_thinking(gate="random"), False, True),
    "first": (small_thinking(gate="first"), False, True),
    "unmodulated": (small_thinking(gate_token="unmodulated"), False, True),
    "unmodulated_mmdit": (small_thinking(gate_token="unmodulated", latent_steps=5), True, False),
    "unmodulated_one_step": (small_thinking(gate_token="unmodulated", latent_steps=1), True, True),
    "token_only": (small_thinking(gate_inputs=("token",)), False, True),
    "time_and_condition": (small_thinking(gate_inputs=("time", "condition")), False, True),
}


# The default tests take the other dispatches in the gradients only.
DISPATCHES = [
    pytest.param(name, marks=() if name == "dense" else pytest.mark.slow)
    for name in LOCAL_DISPATCHES
]


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("dispatch", DISPATCHES)
def test_a_layer_equals_the_per_token_loop(name, dispatch):
    config, text, train = VARIANTS[name]
    inputs, noise = layer_inputs(config, text), gate_randomness(train)
    wanted = _reference_values(name)
    config = ThinkingConfig(**vars(config) | {"dispatch": dispatch})
    vision, text_out, stats = jax.jit(lambda i: our_layer(i, config, noise, trace=True))(inputs)
    np.testing.assert_array_equal(stats.expert, wanted["experts"])
    assert_close(vision, wanted["vision"], 1e-5)
    if text:
        assert_close(text_out, wanted["text"], 1e-5)
    assert_close(stats.probabilities, wanted["probabilities"], 1e-5)
    assert_close(stats.noiseless, wanted["noiseless"], 1e-5)
    assert_close(stats.tokens, wanted["tokens"], 1e-5)


@functools.cache
def _reference_values(name):
    config, text, train = VARIANTS[name]
    return reference_layer(layer_inputs(config, text), config, gate_randomness(train))


@functools.cache
def _reference_gradients(name):
    config, text, train = VARIANTS[name]

    def loss(inputs):
        out = reference_layer(inputs, config, gate_randomness(train))
        return jnp.sum(out["vision"] ** 2) + (jnp.sum(out["text"] ** 3) if text else 0)

    return jax.grad(loss)(layer_inputs(config, text))


@pytest.mark.parametrize(
    "name",
    [
        "dit",
        "mmdit",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("own_experts", "unmodulated")),
    ],
)
@pytest.mark.parametrize("dispatch", LOCAL_DISPATCHES)
def test_gradients_equal_those_of_the_per_token_loop(name, dispatch):
    config, text, train = VARIANTS[name]
    config = ThinkingConfig(**vars(config) | {"dispatch": dispatch})

    def loss(inputs):
        vision, text_out, _ = our_layer(inputs, config, gate_randomness(train))
        return jnp.sum(vision**2) + (jnp.sum(text_out**3) if text else 0)

    found = jax.jit(jax.grad(loss))(layer_inputs(config, text))
    wanted = _reference_gradients(name)
    jax.tree.map(lambda a, b: assert_close(a, b, 5e-5), found, wanted)
    # Make sure that the gradients are not all zero.
    for leaf in jax.tree.leaves(wanted["params"]):
        assert jnp.abs(leaf).max() > 1e-6


@pytest.mark.parametrize("dispatch", DISPATCHES)
@pytest.mark.parametrize("experts", [1, 2, 5])
@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("text", [False, True], ids=["dit", "mmdit"])
def test_with_b_zero_the_layer_equals_base_attention(dispatch, experts, steps, text):
    config = small_thinking(experts=experts, latent_steps=steps, dispatch=dispatch)
    inputs = layer_inputs(config, text)
    inputs["params"]["experts"]["lora_b"] *= 0
    qkv = jnp.einsum("bnd,dpe->bnpe", inputs["vision"], inputs["kernel"])
    joint = jnp.concatenate([qkv, inputs["text"]], 1) if text else qkv
    wanted = attention(split_heads(joint, HEADS), HEADS)
    runs = jax.jit(lambda i: [our_layer(i, config, noise) for noise in (None, gate_randomness())])
    for vision, text_out, _ in runs(inputs):
        assert_close(vision, wanted[:, :N], 1e-6)
        if text:
            assert_close(text_out, wanted[:, N:], 1e-6)


def test_lora_a_starts_as_lecun_normal_and_lora_b_as_zero():
    config = ThinkingConfig(experts=3, rank=16)
    params = init_thinking_layer(jax.random.key(0), config, 256)["experts"]
    assert params["lora_a"].shape == (3, 256, 3, 16)
    assert params["lora_a"].std() == pytest.approx(1 / 16, rel=0.02)
    assert not params["lora_b"].any()


def test_one_latent_step_and_one_expert_equal_plain_lora():
    config = small_thinking(latent_steps=1, experts=1)
    inputs = layer_inputs(config, text=False)

    def lora(inputs):
        p, x = inputs["params"], inputs["vision"]
        centred = x - x.mean(-1, keepdims=True)
        normed = centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
        normed = normed * p["norm"]["scale"] + p["norm"]["bias"]
        u = (1 + inputs["scale"][:, None]) * normed + inputs["shift"][:, None]
        a, b = p["experts"]["lora_a"][0], p["experts"]["lora_b"][0]
        q, k, v = (x @ inputs["kernel"][:, i] + u @ a[:, i] @ b[i] for i in range(3))
        q, k, v = (split_heads(each, HEADS) for each in (q, k, v))
        logits = jnp.einsum("bnhd,bmhd->bhnm", q, k) / np.sqrt(D / HEADS)
        out = jnp.einsum("bhnm,bmhd->bnhd", jax.nn.softmax(logits), v)
        return out.reshape(B, N, D)

    assert_close(
        jax.jit(lambda i: our_layer(i, config, gate_randomness())[0])(inputs), lora(inputs), 1e-5
    )
    found = jax.jit(jax.grad(lambda i: jnp.sum(our_layer(i, config, gate_randomness())[0] ** 2)))(
        inputs
    )
    wanted = jax.jit(jax.grad(lambda i: jnp.sum(lora(i) ** 2)))(inputs)
    jax.tree.map(lambda a, b: assert_close(a, b, 5e-5), found, wanted)
    for leaf in jax.tree.leaves(found["params"]["gate"]):
        np.testing.assert_array_equal(leaf, 0)


def test_latent_steps_can_change_without_new_parameters():
    config = small_thinking()
    inputs = layer_inputs(config, text=True)
    for steps in (1, 2, 6):
        found = jax.jit(lambda i, steps=steps: our_layer(i, config, latent_steps=steps)[0])(inputs)
        assert_close(found, reference_layer(inputs, config, latent_steps=steps)["vision"], 1e-5)


def test_unshared_experts_limit_the_latent_steps():
    config = small_thinking(share_across_steps=False)
    inputs = layer_inputs(config, text=False)
    found = our_layer(inputs, config, latent_steps=2)[0]
    assert_close(found, reference_layer(inputs, config, latent_steps=2)["vision"], 1e-5)
    with pytest.raises(UserError, match="latent_steps=4.*3 latent steps"):
        our_layer(inputs, config, latent_steps=4)


@pytest.mark.parametrize("text", [False, True], ids=["dit", "mmdit"])
def test_the_base_at_every_step_loops_the_frozen_attention(text):
    """With untrained experts, ã^t = Attn(W ã^{t-1}) + x̃, and the output is Attn(W ã^{T-1})."""
    config = small_thinking(base_every_step=True)
    inputs = layer_inputs(config, text)
    inputs["params"]["experts"]["lora_b"] *= 0
    vision, tokens = inputs["vision"], [inputs["vision"]]
    for _ in range(3):
        qkv = jnp.einsum("bnd,dpe->bnpe", tokens[-1], inputs["kernel"])
        joint = jnp.concatenate([qkv, inputs["text"]], 1) if text else qkv
        attended = attention(split_heads(joint, HEADS), HEADS)[:, :N]
        tokens.append(attended + vision)
    found, _, stats = our_layer(inputs, config, trace=True)
    assert_close(found, attended, 1e-5)
    assert_close(stats.tokens, jnp.stack(tokens[:3]), 1e-5)
    # It leaves the base model's output, which is that of one latent step.
    once, _, _ = our_layer(inputs, config, latent_steps=1)
    assert jnp.abs(found - once).max() > 1e-2


@pytest.mark.parametrize("steps", [1, 2])
def test_fewer_steps_use_the_first_experts_and_then_those_of_the_last_step(steps):
    """The same as a model that has only the experts of steps 1 … T'-1 and of step T."""
    config = small_thinking(share_across_steps=False)
    inputs = layer_inputs(config, text=True)
    kept = jnp.array([*range(steps - 1), 2])
    fewer = dict(inputs)
    fewer["params"] = dict(inputs["params"])
    fewer["params"]["step_experts"] = jax.tree.map(
        lambda leaf: leaf[kept], inputs["params"]["step_experts"]
    )
    found, found_text, _ = our_layer(inputs, config, latent_steps=steps)
    short = small_thinking(share_across_steps=False, latent_steps=steps)
    wanted, wanted_text, _ = our_layer(fewer, short)
    assert_close(found, wanted, 1e-6)
    assert_close(found_text, wanted_text, 1e-6)


def test_tracing_keeps_the_output_and_is_free_when_off():
    config = small_thinking(experts=2, latent_steps=3)
    inputs = layer_inputs(config, text=False)
    plain = jax.jit(lambda i: our_layer(i, config))
    traced = jax.jit(lambda i: our_layer(i, config, trace=True))
    vision, _, stats = plain(inputs)
    traced_vision, _, traced_stats = traced(inputs)
    np.testing.assert_array_equal(vision, traced_vision)
    np.testing.assert_array_equal(stats.expert_use, traced_stats.expert_use)
    assert stats.tokens is None and stats.probabilities is None and stats.expert is None
    assert traced_stats.tokens.shape == (3, B, N, D)
    assert traced_stats.probabilities.shape == (3, B, N, 2)
    np.testing.assert_array_equal(traced_stats.tokens[0], inputs["vision"])
    history = f"tensor<3x{B}x{N}x{D}xf32>"
    assert history in traced.lower(inputs).as_text()
    assert history not in plain.lower(inputs).as_text()


def test_statistics_agree_with_the_trace():
    config = small_thinking()
    stats = our_layer(layer_inputs(config, False), config, gate_randomness(), trace=True)[2]
    p, expert = np.asarray(stats.probabilities), np.asarray(stats.expert)
    assert_close(stats.drawn_entropy, -(p * np.log(p)).sum(-1).mean((1, 2)), 1e-6)
    use = [[(expert[t] == m).mean() for m in range(3)] for t in range(3)]
    assert_close(stats.drawn_use, use, 1e-6)
    # Without noise and temperature, the experts of sampling are the most probable ones.
    clean = np.asarray(stats.noiseless)
    assert_close(stats.entropy, -(clean * np.log(clean)).sum(-1).mean((1, 2)), 1e-6)
    use = [[(clean[t].argmax(-1) == m).mean() for m in range(3)] for t in range(3)]
    assert_close(stats.expert_use, use, 1e-6)
    assert np.abs(stats.entropy - stats.drawn_entropy).min() > 1e-3
    assert np.abs(stats.expert_use - stats.drawn_use).max() > 0.1
    assert_close(stats.importance, p.mean((1, 2)), 1e-6)
    assert_close(stats.kept, [(expert[t] == expert[t - 1]).mean() for t in (1, 2)], 1e-6)


@pytest.mark.parametrize(("gate", "entropy"), [("random", np.log(3)), ("first", 0)])
def test_statistics_of_gates_that_do_not_learn(gate, entropy):
    config = small_thinking(gate=gate)
    stats = our_layer(layer_inputs(config, False), config, gate_randomness())[2]
    np.testing.assert_allclose(stats.entropy, entropy, atol=1e-6)
    np.testing.assert_allclose(stats.drawn_entropy, entropy, atol=1e-6)
    wanted = np.full(3, 1 / 3) if gate == "random" else np.eye(3)[0]
    np.testing.assert_allclose(stats.expert_use, [wanted] * 3, atol=1e-6)


def stats_of(importance):
    return RoutingStats(None, None, None, None, importance, None)


def test_balance_loss_computed_by_hand():
    stats = stats_of(jnp.array([[0.7, 0.1, 0.1, 0.1], [0.3, 0.3, 0.3, 0.1]]))
    # Mean importance 0.5, 0.2, 0.2, 0.1: variance 0.0225, mean 0.25.
    assert balance_loss(stats) == pytest.approx(0.0225 / 0.0625)

    def uniform(logits):
        return balance_loss(stats_of(jax.nn.softmax(logits)[None]))

    np.testing.assert_allclose(jax.grad(uniform)(jnp.zeros(4)), 0, atol=1e-7)


def test_routing_noise_depends_on_key_sample_layer_and_latent_step():
    noise = gate_randomness()

    def gumbel(noise, layer, step):
        return draw_routing(noise, small_thinking(), layer, step + 1, N)[step]

    drawn = gumbel(noise, LAYER, 1)
    assert drawn.shape == (B, N, 3)
    swapped = GateRandomness(noise.key, noise.sample[::-1])
    np.testing.assert_array_equal(gumbel(swapped, LAYER, 1), drawn[::-1])
    alone = GateRandomness(noise.key, noise.sample[1:])
    np.testing.assert_array_equal(gumbel(alone, LAYER, 1), drawn[1:])
    others = [
        gumbel(noise, LAYER + 1, 1),
        gumbel(noise, LAYER, 2),
        gumbel(GateRandomness(jax.random.key(4), noise.sample), LAYER, 1),
        drawn[::-1],
    ]
    for other in others:
        assert not np.isclose(other, drawn).any()


def test_routing_noise_has_the_gumbel_mean_and_deviation():
    noise = GateRandomness(jax.random.key(0), jnp.arange(50))
    drawn = draw_routing(noise, small_thinking(experts=4), 0, 1, 200)
    assert drawn.mean() == pytest.approx(np.euler_gamma, abs=0.02)
    assert drawn.std() == pytest.approx(np.pi / np.sqrt(6), abs=0.02)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(experts=0), "experts=0"),
        (dict(temperature=0.0), "temperature"),
        (dict(gate="best"), "learned, random, first"),
        (dict(gate_inputs=()), "at least one of token"),
        (dict(gate_inputs=("token", "text")), "at least one of token"),
        (dict(layers=(1, 1)), "twice"),
        (dict(layers=("a",)), "block numbers"),
    ],
)
def test_an_invalid_field_is_named(fields, message):
    with pytest.raises(UserError, match=message):
        ThinkingConfig(**fields)

"""Halting: never, always and in between, against the per-token loop and against enumeration."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_config
from layer_inputs import (
    B,
    D,
    N,
    assert_close,
    halting_probability,
    halting_thinking,
    layer_inputs,
    our_layer,
    reference_layer,
    small_thinking,
)
from small_configs import tiny_frozenlake
from tiny_models import TINY, example, random_params

import tp_jax
from tp_jax import config as config_lib
from tp_jax.messages.errors import UserError
from tp_jax.models import build_model
from tp_jax.models.flops import forward_flops, thinking_flops
from tp_jax.parallel.sharding import logical_axes, path_name
from tp_jax.thinking import ThinkingConfig
from tp_jax.thinking.cost import expert_flops
from tp_jax.thinking.grouped import group_sizes
from tp_jax.thinking.halting import with_last_expert
from tp_jax.thinking.layer import ThinkingOptions, init_thinking_layer

MANY = 1e9  # an ε at which every token halts at once


def compiled(config, **options):
    return jax.jit(lambda inputs: our_layer(inputs, config, **options))


# Never


@pytest.mark.parametrize(
    ("dispatch", "text", "steps"),
    [
        ("dense", False, 5),
        ("dense", True, 5),
        ("grouped", True, 5),
        ("grouped", False, 2),
        ("dense", True, 1),
    ],
)
def test_never_halting_gives_the_bits_of_the_plain_recursion(dispatch, text, steps):
    plain = small_thinking(dispatch=dispatch, latent_steps=steps)
    inputs = layer_inputs(plain, text)
    wanted = compiled(plain)(inputs)
    for kind in ("threshold",) if text else ("threshold", "ponder"):
        # λ is just below ½ for every token, so that none halts with "ponder" either.
        halt = {"kernel": jnp.zeros(D), "bias": jnp.full(1, -1e-6)}
        given = inputs | {"params": inputs["params"] | {"halt": halt}}
        config = halting_thinking(halting=kind, dispatch=dispatch, latent_steps=steps)
        found = compiled(config)(given)
        np.testing.assert_array_equal(found[0], wanted[0])
        if text:
            np.testing.assert_array_equal(found[1], wanted[1])
        np.testing.assert_array_equal(found[2].live, np.ones(steps))


@pytest.mark.parametrize("kind", ["dit", "mmdit"])
def test_a_model_that_never_halts_gives_the_same_bits(kind):
    thinking = dataclasses.replace(TINY[kind].thinking, layers=(1,), latent_steps=4)
    model = build_model(dataclasses.replace(TINY[kind], depth=2, thinking=thinking))
    params, inputs = random_params(model), example(model)

    def run(options):
        return jax.jit(lambda p: model.apply({"params": p}, *inputs, options))(params)

    plain, _ = run(ThinkingOptions())
    never, stats = run(ThinkingOptions(halting_epsilon=0.0))
    np.testing.assert_array_equal(plain, never)
    assert stats[1].live.tolist() == [1, 1, 1, 1]


# Always


@pytest.mark.parametrize(
    "fields", [{}, {"base_input": "recursed"}, {"base_every_step": True}], ids=str
)
def test_if_all_tokens_halt_the_recursion_is_as_short(fields):
    config = halting_thinking(halting_epsilon=MANY, **fields)
    inputs = layer_inputs(config, text=True)
    found, found_text, stats = compiled(config, trace=True)(inputs)
    short = small_thinking(latent_steps=1, **fields)
    wanted, wanted_text, _ = compiled(short)(inputs)
    assert_close(found, wanted, 1e-6)
    assert_close(found_text, wanted_text, 1e-6)
    np.testing.assert_array_equal(stats.live, [1, 0, 0])
    np.testing.assert_array_equal(stats.expert[1:], 3)


# In between

VARIANTS = {
    "dit": (dict(), False),
    "recursed": (dict(base_input="recursed"), True),
    "every_step": (dict(base_every_step=True), False),
    "own_experts": (dict(share_across_steps=False), False),
    "ponder": (dict(halting="ponder"), True),
}


def moves_little(epsilon):
    """The rule of "threshold", of which the slow reference asks for every token."""

    def halts(t, b, n, before, after):
        return np.linalg.norm(after - before) <= epsilon * np.linalg.norm(before)

    return halts


@functools.cache
def reference_values(name):
    fields, text = VARIANTS[name]
    config = halting_thinking(latent_steps=4, **fields)
    inputs = layer_inputs(config, text)
    if config.halting == "ponder":

        def halts(t, b, n, before, after):
            return halting_probability(inputs["params"], after) >= 0.5

        return inputs, config, reference_layer(inputs, config, halts=halts)
    # An ε between the moves, so that tokens halt after different latent steps.
    moves, never = [], small_thinking(latent_steps=4, **fields)

    def record(t, b, n, before, after):
        moves.append(np.linalg.norm(after - before) / np.linalg.norm(before))
        return False

    reference_layer(inputs, never, halts=record)
    epsilon = float(np.quantile(moves, 0.4))
    config = dataclasses.replace(config, halting_epsilon=epsilon)
    return inputs, config, reference_layer(inputs, config, halts=moves_little(epsilon))


@pytest.mark.parametrize("name", VARIANTS)
def test_halting_equals_the_per_token_loop(name):
    inputs, config, wanted = reference_values(name)
    steps = (wanted["experts"] < 3).sum(0)
    assert len(np.unique(steps)) > 2, "the case should have tokens that halt at different steps"
    for dispatch in ("dense", "grouped") if name in ("dit", "ponder") else ("dense",):
        config = dataclasses.replace(config, dispatch=dispatch)
        vision, text, stats = compiled(config, trace=True)(inputs)
        np.testing.assert_array_equal(stats.expert, wanted["experts"])
        assert_close(vision, wanted["vision"], 1e-5)
        assert_close(stats.tokens, wanted["tokens"], 1e-5)
        if text is not None:
            assert_close(text, wanted["text"], 1e-5)
        # The statistics are those of the tokens that take a latent step.
        live = np.asarray(wanted["experts"] < 3)
        assert_close(stats.live, live.mean((1, 2)), 1e-6)
        assert_close(stats.live.sum(), steps.mean(), 1e-6)
        p = np.asarray(wanted["noiseless"])
        entropy = np.where(live, -(p * np.log(p)).sum(-1), 0).sum((1, 2)) / live.sum((1, 2))
        assert_close(stats.entropy, entropy, 1e-5)
        use = [[(wanted["experts"][t] == m)[live[t]].mean() for m in range(3)] for t in range(4)]
        assert_close(stats.drawn_use, use, 1e-6)
        same = np.asarray(wanted["experts"][1:] == wanted["experts"][:-1])
        assert_close(stats.kept, [same[t][live[t + 1]].mean() for t in range(3)], 1e-6)


@pytest.mark.parametrize("steps", [2, 5])
def test_a_halted_token_keeps_its_state_keys_and_values_and_takes_no_expert(steps):
    inputs, config, _ = reference_values("dit")
    attended, config = [], dataclasses.replace(config, latent_steps=steps)
    # Without jit, attention is called with the values of every latent step.
    with jax.disable_jit():
        _, _, stats = our_layer(inputs, config, trace=True, watch=attended.append)
    base = np.asarray(jnp.einsum("bnd,dpe->bnpe", inputs["vision"], inputs["kernel"]))
    deltas, tokens, expert = np.stack(attended), np.asarray(stats.tokens), np.asarray(stats.expert)
    deltas[-1] -= base
    halted = expert == 3
    assert not halted[0].any() and len(deltas) == len(expert) == steps
    assert steps == 2 or 0 < halted[-1].mean() < 1
    for t in range(1, steps):
        assert halted[t][halted[t - 1]].all(), "no token starts again"
        now = halted[t]
        # It keeps the Δ of its last latent step, and the ã that followed from it.
        np.testing.assert_allclose(deltas[t][now], deltas[t - 1][now], atol=1e-5 * (t == steps - 1))
        before = halted[t - 1]
        np.testing.assert_array_equal(tokens[t][before], tokens[t - 1][before])
        assert (np.abs(tokens[t] - tokens[t - 1]).max(-1) > 0)[~before].all()
        move = np.linalg.norm(tokens[t] - tokens[t - 1], axis=-1)
        small = move <= config.halting_epsilon * np.linalg.norm(tokens[t - 1], axis=-1)
        np.testing.assert_array_equal(now & ~before, small & ~before)


def test_halted_tokens_cost_no_rows_of_the_grouped_product():
    inputs, config, _ = reference_values("dit")
    _, _, stats = compiled(config, trace=True)(inputs)
    rows = sum(int(group_sizes(expert.reshape(-1), 3).sum()) for expert in stats.expert)
    assert rows < 4 * B * N
    # A row is multiplied by A [D, 3r] and, for each of Q, K and V, by B [r, D].
    per_row = 2 * D * 3 * config.rank + 3 * 2 * config.rank * D
    used = float(stats.live.sum()) * B * N
    assert expert_flops(D, config.rank, used) == pytest.approx(rows * per_row)


def test_flops_of_a_model_fall_with_the_mean_latent_steps():
    config = TINY["dit"]
    tokens, width, rank = config.tokens, config.width, config.thinking.rank
    saved = forward_flops(config) - forward_flops(config, mean_latent_steps=1.25)
    assert saved == 2 * 0.75 * tokens * 12 * width * rank  # in two layers
    thinking = dataclasses.replace(config.thinking, halting="ponder", latent_steps=3)
    ponders = thinking_flops(dataclasses.replace(config, thinking=thinking))[0]
    thinking = dataclasses.replace(thinking, halting="none")
    plain = thinking_flops(dataclasses.replace(config, thinking=thinking))[0]
    assert ponders - plain == 2 * 2 * width * tokens


def test_a_route_of_another_sample_has_an_expert_at_every_latent_step():
    expert = jnp.array([[[0, 1, 2]], [[2, 3, 1]], [[3, 3, 0]]])
    found = with_last_expert(expert, 3)
    np.testing.assert_array_equal(found, [[[0, 1, 2]], [[2, 1, 1]], [[2, 1, 0]]])


def test_parameters_of_the_halting_unit_have_sharding_rules_and_exist_with_ponder_only():
    for kind in ("none", "threshold", "ponder"):
        params = init_thinking_layer(jax.random.key(0), small_thinking(halting=kind), D)
        assert ("halt" in params) == (kind == "ponder")
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            assert len(logical_axes(f"thinking/layer_3/{path_name(path)}", leaf.ndim)) == leaf.ndim


def test_ponder_is_refused_where_every_latent_step_is_trained():
    config = tiny_frozenlake()
    config.model.thinking.halting = "ponder"
    with pytest.raises(UserError, match="doesn't fit a model conditioned on a frame"):
        config_lib.build(config)
    config.model.thinking.halting = "threshold"
    config_lib.build(config)
    config = tiny_config(deep_supervision=0.5)
    config.model.thinking.halting = "ponder"
    with pytest.raises(UserError, match="deep_supervision=0.5 trains every latent step"):
        config_lib.build(config)
    for fields, message in (
        (dict(halting="always"), "none, threshold, ponder"),
        (dict(halting_epsilon=-0.1), "halting_epsilon=-0.1: must be 0 or more"),
        (dict(ponder_prior=1.0), "ponder_prior=1.0"),
    ):
        with pytest.raises(UserError, match=message):
            ThinkingConfig(**fields)


# Sampling


def test_samples_of_a_trained_model_halt_by_epsilon(trained):
    model = tp_jax.Model.load(str(trained))
    at_once = model.trace(4, latent_steps=3, halting_epsilon=MANY)
    for experts in at_once.experts.values():
        assert (experts[:, 1:] == model.thinking.experts).all()
        assert (experts[:, 0] < model.thinking.experts).all()
    with pytest.raises(UserError, match="halting_epsilon=-1"):
        model.sample(1, halting_epsilon=-1.0)

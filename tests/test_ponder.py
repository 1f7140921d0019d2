"""Training with "ponder": its loss and gradient against enumeration, its draws, its metrics."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_config
from layer_inputs import (
    LAYER,
    B,
    D,
    N,
    assert_close,
    gate_randomness,
    halting_probability,
    halting_thinking,
    layer_inputs,
    normal,
    our_layer,
    reference_layer,
)
from tiny_models import example, random_params

from tp_jax import config as config_lib
from tp_jax.models import build_model
from tp_jax.parallel.randomness import sample_keys, stream_key
from tp_jax.parallel.sharding import path_name
from tp_jax.thinking.gate import GateRandomness
from tp_jax.thinking.halting import draw_halting, init_halt, ponder, score_term
from tp_jax.thinking.layer import ThinkingOptions
from tp_jax.train.loss import make_gradient


@pytest.mark.slow
def test_the_loss_of_ponder_and_its_gradient_equal_enumeration():
    """Two samples of two tokens and three latent steps: 9 ways to halt in each sample.

    The reference computes, in float64, Σ P·loss + β·Σ P·(log P − log Q) over them, and JAX
    differentiates it. Ours is the mean over all draws of what one draw gives, weighted by their
    probabilities.
    """
    tokens, weight, prior = 2, 0.3, 0.4
    # A gate would have no gradient here, as it draws no noise.
    config = halting_thinking(halting="ponder", ponder_prior=prior, gate="first", experts=1)
    inputs = layer_inputs(config, text=False)
    inputs["vision"] = inputs["vision"][:, :tokens]
    inputs["params"]["halt"]["kernel"] *= 0.5
    targets = np.asarray(normal(90, B, tokens, D))
    ways = list(itertools.product((1, 2, 3), repeat=tokens))

    def error(vision, targets):
        return jnp.square(vision - targets).mean((1, 2))

    def expected(inputs):
        total, params = 0.0, inputs["params"]
        q = [prior, (1 - prior) * prior, (1 - prior) ** 2]
        for way in ways:
            logs = [0.0] * B

            def halts(t, b, n, before, after, way=way, logs=logs):
                stop = way[n] == t
                probability = halting_probability(params, after)
                logs[b] += jnp.log(probability if stop else 1 - probability)
                return stop

            out = reference_layer(inputs, config, halts=halts)["vision"]
            log_p, log_q = jnp.stack(logs), sum(np.log(q[t - 1]) for t in way)
            divergence = (log_p - log_q) / tokens
            total += jnp.exp(log_p) * (error(out, targets) + weight * divergence)
        return total.mean()

    def of_draws(inputs, draws):
        """What one draw gives: the loss with its gradient, and the draw's probability."""
        vision, _, stats = our_layer(inputs, config, halting_draws=draws)
        loss, log_p = error(vision, targets), stats.halting_log_probability
        cost = loss + weight * stats.halting_divergence
        loss = loss + score_term(cost, log_p) + weight * stats.halting_divergence
        return loss.mean(), jnp.exp(log_p).prod()

    # A draw of 0 halts a token, and one of 1 doesn't.
    both = np.array(list(itertools.product(ways, repeat=B)))  # [81, B, N]
    draws = (both[:, None] != np.arange(1, 3)[:, None, None]).astype(np.float32)
    run = jax.value_and_grad(of_draws, has_aux=True)
    (losses, chances), gradients = jax.jit(jax.vmap(run, (None, 0)))(inputs, draws)
    assert chances.sum() == pytest.approx(1, abs=1e-5) and chances.min() > 1e-6
    with jax.enable_x64(True):
        precise = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), inputs)
        wanted, wanted_gradient = jax.value_and_grad(expected)(precise)
    assert (losses * chances).sum() == pytest.approx(float(wanted), rel=1e-5)
    found = jax.tree.map(lambda g: jnp.einsum("k,k...->...", chances, g), gradients)
    for path, leaf in jax.tree_util.tree_leaves_with_path(found["params"]):
        theirs = functools.reduce(lambda tree, key: tree[key.key], path, wanted_gradient["params"])
        assert np.abs(theirs).max() > 1e-4, path_name(path)
        assert_close(leaf, theirs, 2e-5)
    assert_close(found["vision"], wanted_gradient["vision"], 2e-5)


def test_one_token_has_the_distribution_and_the_divergence_of_pondernet():
    """p_t = λ_t·Π_{s<t}(1 − λ_s) with the remainder on T, and Σ p·log(p/q)."""
    lambdas, prior = np.array([0.3, 0.6, 0.1]), 0.2
    survive = np.concatenate([[1], np.cumprod(1 - lambdas)])
    p = np.append(lambdas * survive[:-1], survive[-1])
    q = np.append(prior * (1 - prior) ** np.arange(3), (1 - prior) ** 3)
    logits = jnp.asarray(np.log(lambdas / (1 - lambdas)), jnp.float32)[:, None, None]
    found, divergence = [], 0.0
    for stop in range(4):
        halts = [ponder(logits[t], jnp.full((1, 1), float(stop != t)), prior) for t in range(3)]
        taken = halts[: min(stop + 1, 3)]
        assert [bool(halt.stop) for halt in taken] == [t == stop for t in range(len(taken))]
        found.append(np.exp(sum(halt.log_probability.item() for halt in taken)))
        divergence += found[-1] * sum(halt.divergence.item() for halt in taken)
    np.testing.assert_allclose(found, p, rtol=1e-5)
    assert divergence == pytest.approx((p * np.log(p / q)).sum(), rel=1e-5)
    sampling = ponder(logits, None, prior)
    assert sampling.stop[:, 0, 0].tolist() == [False, True, False]


@pytest.mark.parametrize("logit", [-1e4, -90.0, 0.0, 90.0, 1e4])
@pytest.mark.parametrize("draw", [0.0, 0.5, 1.0])
def test_the_gradient_of_the_halting_unit_is_finite_at_saturation(logit, draw):
    def terms(logit):
        halt = ponder(logit.reshape(1, 1), jnp.full((1, 1), draw), 0.2)
        return jnp.stack([halt.log_probability.sum(), halt.divergence.sum()])

    values, slopes = terms(jnp.float32(logit)), jax.jacobian(terms)(jnp.float32(logit))
    assert np.isfinite(values).all() and np.isfinite(slopes).all()
    assert values[1] >= -1e-6


def test_the_score_term_has_no_value_and_the_gradient_of_reinforce():
    cost, log_p = jnp.array([1.0, 2.0, 6.0]), jnp.array([-0.5, -1.0, -2.0])
    np.testing.assert_array_equal(score_term(cost, log_p), 0)
    slopes = jax.grad(lambda log_p: score_term(cost, log_p).sum())(log_p)
    np.testing.assert_allclose(slopes, [1 - 4, 2 - 3.5, 6 - 1.5])
    assert jax.grad(lambda log_p: score_term(cost[:1], log_p).sum())(log_p[:1]).tolist() == [1]


def test_halting_draws_depend_on_key_sample_layer_and_latent_step():
    noise = gate_randomness()

    def drawn(noise=noise, layer=LAYER, steps=3, **fields):
        config = halting_thinking(**dict(halting="ponder") | fields)
        return draw_halting(noise, config, layer, steps, N)

    found = drawn()
    assert found.shape == (2, B, N) and found.min() >= 0 and found.max() < 1
    swapped = GateRandomness(noise.key, noise.sample[::-1])
    np.testing.assert_array_equal(drawn(swapped), found[:, ::-1])
    np.testing.assert_array_equal(drawn(steps=2), found[:1])
    assert drawn(steps=1).shape == (0, B, N)
    for other in (
        drawn(layer=LAYER + 1),
        drawn(GateRandomness(jax.random.key(4), noise.sample)),
        found[::-1],
        found[:, ::-1],
    ):
        assert not np.isclose(other, found).any()
    assert drawn(None) is drawn(gate_randomness(train=False)) is drawn(halting="threshold") is None


def tiny_run(**thinking):
    """A config, the model and objective that it describes, parameters, and a batch."""
    config = tiny_config(condition_dropout=0.0)
    config.model.update(depth=1, remat="none")
    config.model.thinking.update(layers=(0,), latent_steps=3, **thinking)
    built = config_lib.build(config)
    model = build_model(built.model)
    params, (x, _, condition) = random_params(model), example(model, 4)
    batch = {"x": x, "index": jnp.arange(4), "condition": condition}
    return config, model, built.objective, params, batch


def update_of(**thinking):
    """The jitted gradient of a tiny model, and its arguments."""
    config, model, objective, params, batch = tiny_run(**thinking)
    run = jax.jit(make_gradient(model, objective, config))
    return run, (params, {}, batch, jnp.int32(3))


@pytest.mark.slow
def test_the_gradient_of_a_train_step_is_that_of_the_formula():
    """∇loss + β·∇divergence + (R − b)·∇log p, of every sample with its own derivatives."""
    weight, train_step = 0.3, jnp.int32(3)
    config, model, objective, params, batch = tiny_run(halting="ponder", ponder_weight=weight)
    x, index = batch["x"], batch["index"]
    key = functools.partial(stream_key, config.seed, train_step=train_step)
    times = objective.sample_times(sample_keys(key("time"), index))
    noise = jnp.stack([jax.random.normal(k, x.shape[1:]) for k in sample_keys(key("noise"), index)])
    options = ThinkingOptions(GateRandomness(key("routing"), index))

    def of_samples(halt):
        layer = params["thinking"]["layer_0"] | {"halt": halt}
        changed = {"params": params | {"thinking": {"layer_0": layer}}}
        found = []

        def predict(x_t, timestep):
            output, stats = model.apply(changed, x_t, timestep, batch["condition"], options)
            found.append(stats[0])
            return output

        loss = objective.losses(predict, x, noise, times)["loss"]
        return loss, found[0].halting_divergence, found[0].halting_log_probability

    halt = params["thinking"]["layer_0"]["halt"]
    loss, divergence, _ = of_samples(halt)
    slopes = jax.jacobian(of_samples)(halt)
    r = np.asarray(loss + weight * divergence, np.float64)
    found, metrics = make_gradient(model, objective, config)(params, {}, batch, train_step)
    for name in halt:
        of_loss, of_divergence, of_log_p = (np.asarray(each[name]) for each in slopes)
        of_each = [
            of_loss[i] + weight * of_divergence[i] + (r[i] - np.delete(r, i).mean()) * of_log_p[i]
            for i in range(len(r))
        ]
        wanted = np.mean(of_each, axis=0)
        gradient = found["thinking"]["layer_0"]["halt"][name]
        assert np.abs(wanted).max() > 1e-4
        np.testing.assert_allclose(gradient, wanted, atol=1e-5 * np.abs(wanted).max() + 1e-7)
    assert metrics["halting_divergence"] == pytest.approx(float(divergence.mean()), rel=1e-5)


def test_training_ignores_the_threshold():
    (plain, arguments), (halting, _) = update_of(), update_of(halting="threshold")
    assert halting.lower(*arguments).as_text() == plain.lower(*arguments).as_text()


def test_training_with_ponder_trains_the_halting_unit():
    run, arguments = update_of(halting="ponder")
    gradients, metrics = run(*arguments)
    assert 1 < metrics["latent_steps_used/layer_0"] < 3
    halt = gradients["thinking"]["layer_0"]["halt"]
    assert np.abs(halt["kernel"]).max() > 0 and np.abs(halt["bias"]).max() > 0
    assert metrics["halting_divergence"] > 0 and np.isfinite(metrics["loss"])
    # With the parameters that it starts with, the unit gives the prior.
    start = init_halt(halting_thinking(ponder_prior=0.3), 8)
    assert jax.nn.sigmoid(start["bias"][0]) == pytest.approx(0.3) and not start["kernel"].any()

"""METHOD's properties of one thinking layer, against a plain loop and closed forms."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from thinking_reference import thinking_attention

from tp_jax.messages.errors import UserError
from tp_jax.models.attention import attention, split_heads
from tp_jax.parallel.chips import find_chip
from tp_jax.thinking import Conditioning, RoutingNoise, ThinkingConfig
from tp_jax.thinking.cost import Setting, cheapest
from tp_jax.thinking.dispatch import LOCAL, get_dispatch, megablox
from tp_jax.thinking.experts import Experts
from tp_jax.thinking.gate import draw_routing
from tp_jax.thinking.layer import init_thinking_layer
from tp_jax.thinking.recursion import Thought, balance_loss, think

B, N, L, D, HEADS = 2, 5, 3, 8, 2
LAYER = 7


def normal(seed, *shape):
    # NumPy's, because every shape that JAX draws has to be compiled.
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def layer_inputs(config, text):
    """Arguments of a layer, with every parameter random (B isn't zero)."""
    shapes = jax.eval_shape(lambda key: init_thinking_layer(key, config, D), jax.random.key(0))
    leaves, tree = jax.tree.flatten(shapes)
    params = tree.unflatten([0.5 * normal(i, *x.shape) for i, x in enumerate(leaves)])
    params["norm"]["scale"] += 1
    inputs = {
        "params": params,
        "vision": normal(20, B, N, D),
        "scale": 0.5 * normal(21, B, D),
        "shift": normal(22, B, D),
        "time": normal(23, B, D),
        "condition": normal(24, B, D),
        "kernel": 0.5 * normal(25, D, 3, D),
    }
    return inputs | ({"text": normal(26, B, L, 3, D)} if text else {})


def ours(inputs, config, noise=None, **options):
    """The layer of the package, as a block calls it."""
    text = inputs.get("text")

    def attend(qkv):
        if text is None:
            return attention(split_heads(qkv, HEADS), HEADS), None
        out = attention(split_heads(jnp.concatenate([qkv, text], 1), HEADS), HEADS)
        return out[:, :N], out[:, N:]

    return think(
        inputs["params"],
        inputs["vision"],
        inputs["scale"],
        inputs["shift"],
        Conditioning(inputs["time"], inputs["condition"]),
        lambda x: jnp.einsum("bnd,dpe->bnpe", x, inputs["kernel"]),
        attend,
        config=config,
        draws=draw_routing(
            noise, config, LAYER, options.get("latent_steps") or config.latent_steps, N
        ),
        **options,
    )


def reference(inputs, config, noise=None, latent_steps=None):
    """The plain loop, fed the same draws."""
    steps = latent_steps or config.latent_steps
    params = dict(inputs["params"])
    if "step_experts" in params:
        params["experts"] = params.pop("step_experts")
    drawn, draws = draw_routing(noise, config, LAYER, steps, N), {}
    if drawn is not None:
        draws["random_experts" if config.gate == "random" else "gumbel"] = drawn
    text = inputs.get("text")
    return thinking_attention(
        inputs["vision"],
        inputs["scale"],
        inputs["shift"],
        inputs["time"],
        inputs["condition"],
        params,
        lambda x: tuple(x @ inputs["kernel"][:, i] for i in range(3)),
        text=None if text is None else tuple(text[:, :, i] for i in range(3)),
        heads=HEADS,
        latent_steps=steps,
        temperature=config.temperature,
        gate=config.gate,
        gate_inputs=config.gate_inputs,
        modulate=config.modulate,
        base_input=config.base_input,
        base_every_step=config.base_every_step,
        share_across_steps=config.share_across_steps,
        **draws,
    )


def make_noise(train=True):
    return RoutingNoise(jax.random.key(3), jnp.array([4, 9]), train)


def small(**fields):
    return ThinkingConfig(**dict(experts=3, rank=2, latent_steps=3, gate_width=4) | fields)


def assert_close(actual, wanted, tolerance):
    actual, wanted = np.asarray(actual), np.asarray(wanted)
    np.testing.assert_allclose(actual, wanted, atol=tolerance * max(1, np.abs(wanted).max()))


VARIANTS = {
    "dit": (small(), False, True),
    "mmdit": (small(), True, True),
    "sampling": (small(temperature=0.7), True, False),
    "one_step": (small(latent_steps=1), True, True),
    "no_modulation": (small(modulate=False), False, True),
    "recursed": (small(base_input="recursed"), True, True),
    "every_step": (small(base_every_step=True), False, True),
    "every_step_recursed": (small(base_every_step=True, base_input="recursed"), True, True),
    "own_experts": (small(share_across_steps=False), True, True),
    "random": (small(gate="random"), False, True),
    "first": (small(gate="first"), False, True),
    "token_only": (small(gate_inputs=("token",)), False, True),
    "time_and_condition": (small(gate_inputs=("time", "condition")), False, True),
}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("dispatch", LOCAL)
def test_layer_equals_the_plain_loop(name, dispatch):
    config, text, train = VARIANTS[name]
    inputs, noise = layer_inputs(config, text), make_noise(train)
    wanted = _reference_values(name)
    config = ThinkingConfig(**vars(config) | {"dispatch": dispatch})
    vision, text_out, thought = jax.jit(lambda i: ours(i, config, noise, trace=True))(inputs)
    np.testing.assert_array_equal(thought.expert, wanted["experts"])
    assert_close(vision, wanted["vision"], 1e-5)
    if text:
        assert_close(text_out, wanted["text"], 1e-5)
    assert_close(thought.probabilities, wanted["probabilities"], 1e-5)
    assert_close(thought.tokens, wanted["tokens"], 1e-5)


@functools.cache
def _reference_values(name):
    config, text, train = VARIANTS[name]
    return reference(layer_inputs(config, text), config, make_noise(train))


@functools.cache
def _reference_gradients(name):
    config, text, train = VARIANTS[name]

    def loss(inputs):
        out = reference(inputs, config, make_noise(train))
        return jnp.sum(out["vision"] ** 2) + (jnp.sum(out["text"] ** 3) if text else 0)

    return jax.grad(loss)(layer_inputs(config, text))


@pytest.mark.parametrize("name", ["dit", "mmdit", "own_experts"])
@pytest.mark.parametrize("dispatch", LOCAL)
def test_gradients_equal_the_plain_loop(name, dispatch):
    config, text, train = VARIANTS[name]
    config = ThinkingConfig(**vars(config) | {"dispatch": dispatch})

    def loss(inputs):
        vision, text_out, _ = ours(inputs, config, make_noise(train))
        return jnp.sum(vision**2) + (jnp.sum(text_out**3) if text else 0)

    found = jax.jit(jax.grad(loss))(layer_inputs(config, text))
    wanted = _reference_gradients(name)
    jax.tree.map(lambda a, b: assert_close(a, b, 5e-5), found, wanted)
    # The comparison must not be one of zeros.
    for leaf in jax.tree.leaves(wanted["params"]):
        assert jnp.abs(leaf).max() > 1e-6


@pytest.mark.parametrize("dispatch", LOCAL)
@pytest.mark.parametrize("experts", [1, 2, 5])
@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("text", [False, True], ids=["dit", "mmdit"])
def test_identity_while_b_is_zero(dispatch, experts, steps, text):
    config = small(experts=experts, latent_steps=steps, dispatch=dispatch)
    inputs = layer_inputs(config, text)
    inputs["params"]["experts"]["lora_b"] *= 0
    qkv = jnp.einsum("bnd,dpe->bnpe", inputs["vision"], inputs["kernel"])
    joint = jnp.concatenate([qkv, inputs["text"]], 1) if text else qkv
    wanted = attention(split_heads(joint, HEADS), HEADS)
    runs = jax.jit(lambda i: [ours(i, config, noise) for noise in (None, make_noise())])
    for vision, text_out, _ in runs(inputs):
        assert_close(vision, wanted[:, :N], 1e-6)
        if text:
            assert_close(text_out, wanted[:, N:], 1e-6)


def test_experts_start_as_lecun_normal_and_zero():
    config = ThinkingConfig(experts=3, rank=16)
    params = init_thinking_layer(jax.random.key(0), config, 256)["experts"]
    assert params["lora_a"].shape == (3, 256, 3, 16)
    assert params["lora_a"].std() == pytest.approx(1 / 16, rel=0.02)
    assert not params["lora_b"].any()


def plain_dispatch(u, expert, weight, experts):
    """Token by token, one matrix-vector product at a time."""
    rows = []
    for b in range(u.shape[0]):
        for n in range(u.shape[1]):
            m = int(expert[b, n])
            parts = [
                weight[b, n] * (u[b, n] @ experts.lora_a[m, :, i]) @ experts.lora_b[m, i]
                for i in range(3)
            ]
            rows.append(jnp.stack(parts))
    return jnp.stack(rows).reshape(*u.shape[:2], 3, u.shape[2])


EXPERTS = 4
u_, weight_ = normal(30, B, N, D), 1 + 0.1 * normal(31, B, N)
experts_ = Experts(normal(32, EXPERTS, D, 3, 2), normal(33, EXPERTS, 3, 2, D))


def dispatch_values(dispatch):
    def run(expert):
        def f(u, weight, experts):
            out = dispatch(u, expert, weight, experts)
            return jnp.sum(jnp.sin(out)), out

        return jax.value_and_grad(f, argnums=(0, 1, 2), has_aux=True)(u_, weight_, experts_)

    return run


compiled_dispatches = {name: jax.jit(dispatch_values(f)) for name, f in LOCAL.items()}

routings = st.one_of(
    st.integers(0, EXPERTS - 1).map(lambda m: [m] * (B * N)),  # all to one
    st.lists(st.sampled_from([0, EXPERTS - 1]), min_size=B * N, max_size=B * N),  # some get none
    st.lists(st.integers(0, EXPERTS - 1), min_size=B * N, max_size=B * N),
)


@hypothesis.settings(max_examples=15, deadline=None, derandomize=True)
@hypothesis.given(routings)
def test_dispatches_equal_token_by_token_whatever_the_routing(routing):
    expert = jnp.array(routing, jnp.int32).reshape(B, N)
    (_, wanted), wanted_grads = dispatch_values(plain_dispatch)(np.asarray(expert))
    for name, run in compiled_dispatches.items():
        (_, found), grads = run(expert)
        assert_close(found, wanted, 1e-5)
        jax.tree.map(lambda a, b: assert_close(a, b, 1e-5), grads, wanted_grads)
        assert found.shape == (B, N, 3, D), name


@pytest.mark.parametrize("dispatch", LOCAL)
def test_dispatch_in_bfloat16_stays_near_float32(dispatch):
    expert = jnp.arange(B * N).reshape(B, N) % EXPERTS
    exact = LOCAL[dispatch](u_, expert, weight_, experts_)
    found = LOCAL[dispatch](u_.astype(jnp.bfloat16), expert, weight_, experts_)
    assert found.dtype == jnp.bfloat16
    assert_close(found.astype(jnp.float32), exact, 0.02)


def test_auto_dispatch_follows_the_cost_rule():
    def chosen(experts, kind, devices=1, tokens=4096):
        chip = find_chip(kind)
        return cheapest(Setting(experts, 1152, 128, 2, tokens, devices, 1, 1, chip, itemsize=2))

    # v5p groups, and ordering a token moves 4·4·D bytes: 6.7 ns at 2.77 TB/s for D = 1152.
    # One wasted expert costs 12·D·r FLOPs: 3.9 ns at 459 TFLOP/s for r = 128.
    assert [chosen(m, "TPU v5") for m in (2, 3)] == ["dense", "grouped"]
    # v5e: 22.5 ns against 9.0 ns.
    assert [chosen(m, "TPU v5 lite") for m in (2, 3, 4)] == ["dense", "dense", "grouped"]
    # Where nothing groups, dense is left.
    assert chosen(64, "NVIDIA H100") == "dense"
    # The weights of a layer are 12·M·D·r bytes, and travel once; tokens 10·D, T times. At 200 GB/s
    # that is 0.53 ms for M = 64 and 0.44 ms, but tokens are then ordered twice, 0.2 ms each.
    found = [chosen(m, "TPU v5 lite", devices=16) for m in (4, 64, 128, 256)]
    assert found == ["grouped", "grouped", "expert_parallel", "expert_parallel"]
    assert chosen(256, "TPU v5 lite", devices=16, tokens=65536) == "grouped"
    assert get_dispatch(ThinkingConfig(), B, N, D, jnp.float32).name == "dense"
    alone = ThinkingConfig(dispatch="expert_parallel")
    assert get_dispatch(alone, B, N, D, jnp.float32).name == "dense"


@pytest.mark.parametrize("sizes", [[5, 0, 7, 1], [0, 0, 0, 0], [13, 0, 0, 0], [2, 3, 1, 0]])
def test_the_kernel_for_tpus_multiplies_as_ragged_dot_does(sizes):
    rows, weights = normal(40, 13, 6), normal(41, 4, 6, 3)
    sizes = jnp.array(sizes, jnp.int32)
    found = megablox(rows, weights, sizes, jnp.float32, interpret=True)
    wanted = jax.lax.ragged_dot(rows, weights, sizes)
    assert_close(found, wanted, 1e-5)


def test_one_step_and_one_expert_is_plain_lora():
    config = small(latent_steps=1, experts=1)
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

    assert_close(jax.jit(lambda i: ours(i, config, make_noise())[0])(inputs), lora(inputs), 1e-5)
    found = jax.jit(jax.grad(lambda i: jnp.sum(ours(i, config, make_noise())[0] ** 2)))(inputs)
    wanted = jax.jit(jax.grad(lambda i: jnp.sum(lora(i) ** 2)))(inputs)
    jax.tree.map(lambda a, b: assert_close(a, b, 5e-5), found, wanted)
    for leaf in jax.tree.leaves(found["params"]["gate"]):
        np.testing.assert_array_equal(leaf, 0)


def test_more_thinking_when_sampling_needs_no_new_parameters():
    config = small()
    inputs = layer_inputs(config, text=True)
    for steps in (1, 2, 6):
        found = jax.jit(lambda i, steps=steps: ours(i, config, latent_steps=steps)[0])(inputs)
        assert_close(found, reference(inputs, config, latent_steps=steps)["vision"], 1e-5)


def test_own_experts_per_step_bound_the_steps():
    config = small(share_across_steps=False)
    inputs = layer_inputs(config, text=False)
    found = ours(inputs, config, latent_steps=2)[0]
    assert_close(found, reference(inputs, config, latent_steps=2)["vision"], 1e-5)
    with pytest.raises(UserError, match="latent_steps=4.*3 latent steps"):
        ours(inputs, config, latent_steps=4)


def test_a_trace_changes_nothing_and_costs_nothing_when_not_asked_for():
    config = small(experts=2, latent_steps=3)
    inputs = layer_inputs(config, text=False)
    plain = jax.jit(lambda i: ours(i, config))
    traced = jax.jit(lambda i: ours(i, config, trace=True))
    vision, _, thought = plain(inputs)
    traced_vision, _, traced_thought = traced(inputs)
    np.testing.assert_array_equal(vision, traced_vision)
    np.testing.assert_array_equal(thought.expert_use, traced_thought.expert_use)
    assert thought.tokens is None and thought.probabilities is None and thought.expert is None
    assert traced_thought.tokens.shape == (3, B, N, D)
    assert traced_thought.probabilities.shape == (3, B, N, 2)
    np.testing.assert_array_equal(traced_thought.tokens[0], inputs["vision"])
    history = f"tensor<3x{B}x{N}x{D}xf32>"
    assert history in traced.lower(inputs).as_text()
    assert history not in plain.lower(inputs).as_text()


def test_statistics_are_those_of_the_trace():
    config = small()
    thought = ours(layer_inputs(config, False), config, make_noise(), trace=True)[2]
    p, expert = np.asarray(thought.probabilities), np.asarray(thought.expert)
    assert_close(thought.entropy, -(p * np.log(p)).sum(-1).mean((1, 2)), 1e-6)
    use = [[(expert[t] == m).mean() for m in range(3)] for t in range(3)]
    assert_close(thought.expert_use, use, 1e-6)
    assert_close(thought.importance, p.mean((1, 2)), 1e-6)
    assert_close(thought.kept, [(expert[t] == expert[t - 1]).mean() for t in (1, 2)], 1e-6)


def test_balance_loss_by_hand():
    thought = Thought(None, None, jnp.array([[0.7, 0.1, 0.1, 0.1], [0.3, 0.3, 0.3, 0.1]]), None)
    # Mean importance 0.5, 0.2, 0.2, 0.1: variance 0.0225, mean 0.25.
    assert balance_loss(thought) == pytest.approx(0.0225 / 0.0625)

    def uniform(logits):
        return balance_loss(Thought(None, None, jax.nn.softmax(logits)[None], None))

    np.testing.assert_allclose(jax.grad(uniform)(jnp.zeros(4)), 0, atol=1e-7)


def test_routing_noise_depends_on_what_it_is_named_by_and_nothing_else():
    noise = make_noise()

    def gumbel(noise, layer, step):
        return draw_routing(noise, small(), layer, step + 1, N)[step]

    drawn = gumbel(noise, LAYER, 1)
    assert drawn.shape == (B, N, 3)
    swapped = RoutingNoise(noise.key, noise.sample[::-1])
    np.testing.assert_array_equal(gumbel(swapped, LAYER, 1), drawn[::-1])
    alone = RoutingNoise(noise.key, noise.sample[1:])
    np.testing.assert_array_equal(gumbel(alone, LAYER, 1), drawn[1:])
    others = [
        gumbel(noise, LAYER + 1, 1),
        gumbel(noise, LAYER, 2),
        gumbel(RoutingNoise(jax.random.key(4), noise.sample), LAYER, 1),
        drawn[::-1],
    ]
    for other in others:
        assert not np.isclose(other, drawn).any()


def test_gumbel_noise_is_gumbel():
    noise = RoutingNoise(jax.random.key(0), jnp.arange(50))
    drawn = draw_routing(noise, small(experts=4), 0, 1, 200)
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
def test_a_bad_field_is_named(fields, message):
    with pytest.raises(UserError, match=message):
        ThinkingConfig(**fields)

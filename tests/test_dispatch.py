"""Every dispatch computes each token with its expert, for any routing."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_inputs import (
    B,
    D,
    N,
    assert_close,
    normal,
)

from tp_jax.parallel.chips import UNKNOWN_CHIP, find_chip
from tp_jax.performance.traced_flops import traced_flops
from tp_jax.thinking import ThinkingConfig
from tp_jax.thinking.cost import CostInputs, cheapest_dispatch, choose_tile, count_tiles
from tp_jax.thinking.dispatch import LOCAL_DISPATCHES, get_dispatch
from tp_jax.thinking.experts import Experts
from tp_jax.thinking.grouped import assign_tiles, by_tiles, megablox


def plain_dispatch(u, expert, weight, experts):
    """A plain loop over tokens with one matrix-vector product at a time."""
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
MATRICES = Experts(normal(32, EXPERTS, D, 3, 2), normal(33, EXPERTS, 3, 2, D))
U, WEIGHT = normal(30, B, N, D), 1 + 0.1 * normal(31, B, N)


def dispatch_values(dispatch):
    """A function of the routing: (sum of sines of the output, output), and gradients."""

    def run(expert):
        def f(u, weight, experts):
            out = dispatch(u, expert, weight, experts)
            return jnp.sum(jnp.sin(out)), out

        return jax.value_and_grad(f, argnums=(0, 1, 2), has_aux=True)(U, WEIGHT, MATRICES)

    return run


# Tiles of 2 and 3 rows, because `grouped` has one large tile for every expert at these sizes.
IMPLEMENTATIONS = LOCAL_DISPATCHES | {
    f"tiles of {tile}": functools.partial(by_tiles, tile=tile) for tile in (2, 3)
}
compiled_dispatches = {name: jax.jit(dispatch_values(f)) for name, f in IMPLEMENTATIONS.items()}
routings = st.one_of(
    st.integers(0, EXPERTS - 1).map(lambda m: [m] * (B * N)),  # all tokens to one expert
    # Some experts get no token.
    st.lists(st.sampled_from([0, EXPERTS - 1]), min_size=B * N, max_size=B * N),
    st.lists(st.integers(0, EXPERTS - 1), min_size=B * N, max_size=B * N),
)


@hypothesis.settings(max_examples=15, deadline=None, derandomize=True)
@hypothesis.given(routings)
def test_dispatches_equal_a_loop_over_tokens_for_any_routing(routing):
    expert = jnp.array(routing, jnp.int32).reshape(B, N)
    (_, wanted), wanted_grads = dispatch_values(plain_dispatch)(np.asarray(expert))
    for name, run in compiled_dispatches.items():
        (_, found), grads = run(expert)
        assert_close(found, wanted, 1e-5)
        jax.tree.map(lambda a, b: assert_close(a, b, 1e-5), grads, wanted_grads)
        assert found.shape == (B, N, 3, D), name


@pytest.mark.parametrize("dispatch", IMPLEMENTATIONS)
def test_dispatch_in_bfloat16_stays_near_float32(dispatch):
    expert = jnp.arange(B * N).reshape(B, N) % EXPERTS
    exact = IMPLEMENTATIONS[dispatch](U, expert, WEIGHT, MATRICES)
    found = IMPLEMENTATIONS[dispatch](U.astype(jnp.bfloat16), expert, WEIGHT, MATRICES)
    assert found.dtype == jnp.bfloat16
    assert_close(found.astype(jnp.float32), exact, 0.02)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_the_out_of_range_expert_gives_zeros_and_no_gradient(name):
    """`expert_parallel` fills its buffers with such tokens."""
    expert = jnp.array([[4, 1, 4, 1, 2], [4, 4, 0, 4, 4]])
    nobody = expert == EXPERTS
    (_, delta), (u_grad, weight_grad, experts_grad) = compiled_dispatches[name](expert)
    wanted, wanted_grads = compiled_dispatches["dense"](jnp.where(nobody, 0, expert))
    assert not delta[nobody].any() and not u_grad[nobody].any() and not weight_grad[nobody].any()
    assert_close(delta[~nobody], wanted[1][~nobody], 1e-5)
    assert_close(u_grad[~nobody], wanted_grads[0][~nobody], 1e-5)
    used = jnp.array([1, 2])  # Expert 0 has more tokens in `wanted`, and expert 3 none.
    assert_close(experts_grad.lora_a[used], wanted_grads[2].lora_a[used], 1e-5)
    assert_close(experts_grad.lora_b[used], wanted_grads[2].lora_b[used], 1e-5)
    assert not experts_grad.lora_b[3].any()


def test_tiles_of_a_routing_by_hand():
    found = assign_tiles(jnp.array([2, 0, 2, 3, 2]), 3, tile=2)
    # Expert 0 half fills a tile, expert 1 none, and expert 2 fills one and a half; one is left.
    np.testing.assert_array_equal(found.expert, [0, 2, 2, 2])
    np.testing.assert_array_equal(found.token, [1, 5, 0, 2, 4, 5, 5, 5])
    np.testing.assert_array_equal(found.row[jnp.array([0, 1, 2, 4])], [2, 0, 3, 4])
    assert found.row[3] >= 8
    # With three tokens of each of 2 experts, and with all of one, everything fits.
    assert count_tiles(6, 2, 2) == 4 and count_tiles(6, 2, 8) == 2 and count_tiles(1, 64, 16) == 1


def test_flops_of_each_dispatch_with_64_experts():
    tokens, width, rank, experts = 2048, 96, 8, 64
    shapes = Experts(
        jax.ShapeDtypeStruct((experts, width, 3, rank), jnp.float32),
        jax.ShapeDtypeStruct((experts, 3, rank, width), jnp.float32),
    )
    u = jax.ShapeDtypeStruct((1, tokens, width), jnp.float32)
    expert, weight = (jax.ShapeDtypeStruct((1, tokens), kind) for kind in (jnp.int32, jnp.float32))

    def flops(dispatch):
        def loss(u, weight, experts, expert):
            return dispatch(u, expert, weight, experts).sum()

        gradient = jax.value_and_grad(loss, argnums=(0, 1, 2))
        return traced_flops(jax.jit(gradient).trace(u, weight, shapes, expert).jaxpr)

    # Forward, and the gradients of the tokens and of the experts.
    needed = 3 * 12 * width * rank * tokens
    assert flops(LOCAL_DISPATCHES["dense"]) == experts * needed
    tile = choose_tile(tokens, experts, width, rank, 4, UNKNOWN_CHIP)
    rows = tile * count_tiles(tokens, experts, tile)
    assert flops(LOCAL_DISPATCHES["grouped"]) == needed * rows / tokens < 2 * needed


def test_auto_dispatch_follows_the_cost_rule():
    def chosen(experts, kind, devices=1, tokens=4096):
        chip = find_chip(kind)
        return cheapest_dispatch(
            CostInputs(experts, 1152, 128, 2, tokens, devices, 1, 1, chip, itemsize=2)
        )

    # v5p: "grouped" sorts the tokens, which moves 4·4·D bytes per token: 6.7 ns at 2.77 TB/s for
    # D = 1152. "dense" wastes 12·D·r FLOPs per expert: 3.9 ns at 459 TFLOP/s for r = 128.
    assert [chosen(m, "TPU v5") for m in (2, 3)] == ["dense", "grouped"]
    # v5e: sorting takes 22.5 ns, a wasted expert 9.0 ns.
    assert [chosen(m, "TPU v5 lite") for m in (2, 3, 4)] == ["dense", "dense", "grouped"]
    # GPUs have no grouped kernel. Sorting takes 5.5 ns of an H100 and copying the matrices for
    # tiles of 128 rows 12.4 ns; a wasted expert 1.8 ns. Half-empty tiles waste less.
    assert [chosen(m, "NVIDIA H100") for m in (2, 8, 16, 64)] == [*["dense"] * 2, *["grouped"] * 2]
    # Gathering the weights of a layer moves 12·M·D·r bytes once; "expert_parallel" sends 10·D bytes
    # per token at each of T latent steps. At 200 GB/s the weights take 0.53 ms for M = 64 and the
    # tokens 0.44 ms, plus 0.2 ms for each of two sorts.
    found = [chosen(m, "TPU v5 lite", devices=16) for m in (4, 64, 128, 256)]
    assert found == ["grouped", "grouped", "expert_parallel", "expert_parallel"]
    assert chosen(256, "TPU v5 lite", devices=16, tokens=65536) == "grouped"
    assert get_dispatch(ThinkingConfig(), B, N, D, jnp.float32).name == "dense"
    # Without an expert axis in the mesh, "expert_parallel" falls back to "dense".
    expert_parallel = ThinkingConfig(dispatch="expert_parallel")
    assert get_dispatch(expert_parallel, B, N, D, jnp.float32).name == "dense"


@pytest.mark.parametrize("sizes", [[5, 0, 7, 1], [0, 0, 0, 0], [13, 0, 0, 0], [2, 3, 1, 0]])
def test_tpu_kernel_equals_ragged_dot(sizes):
    rows, weights = normal(40, 13, 6), normal(41, 4, 6, 3)
    sizes = jnp.array(sizes, jnp.int32)
    found = megablox(rows, weights, sizes, jnp.float32, interpret=True)
    wanted = jax.lax.ragged_dot(rows, weights, sizes)
    assert_close(found, wanted, 1e-5)

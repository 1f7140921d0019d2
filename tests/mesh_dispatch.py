"""Compare every dispatch on meshes of eight devices with a plain loop, for random routings.

    python mesh_dispatch.py EXAMPLES EXPERTS:AXIS…

EXAMPLES is the number of routings per case. The case 5:4 has five experts, and four devices on the
expert axis.
"""

import functools
import os
import sys

from virtual_devices import xla_flags

if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = xla_flags(devices=8)

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np

from tp_jax.parallel.axes import ONE_DEVICE
from tp_jax.parallel.mesh import create_mesh
from tp_jax.thinking import ThinkingConfig
from tp_jax.thinking.dispatch import DISPATCHES, get_dispatch
from tp_jax.thinking.experts import Experts

# On eight devices each device has 5 tokens: fewer than devices, and not a multiple of 8 rows.
B, N, D, R = 8, 5, 6, 2
rng = np.random.default_rng(0)
U, WEIGHT = rng.normal(size=(B, N, D)), 1 + 0.1 * rng.normal(size=(B, N))


def experts_of(count):
    """Random matrices A and B of this many experts."""
    rng = np.random.default_rng(count)
    # Small values: the sine of a large Δ amplifies its rounding error.
    return 0.4 * rng.normal(size=(count, D, 3, R)), 0.4 * rng.normal(size=(count, 3, R, D))


def plain(expert, count):
    """Δ and the gradients of sum(sin Δ) by a loop over tokens in float64."""
    a, b = experts_of(count)
    delta, u_grad, weight_grad = np.zeros((B, N, 3, D)), np.zeros_like(U), np.zeros_like(WEIGHT)
    a_grad, b_grad = np.zeros_like(a), np.zeros_like(b)
    for i in np.ndindex(B, N):
        m, u, w = expert[i], U[i], WEIGHT[i]
        if m == count:  # a token without expert
            continue
        for p in range(3):
            low = u @ a[m, :, p]
            delta[i][p] = w * low @ b[m, p]
            g = np.cos(delta[i][p])
            weight_grad[i] += g @ (low @ b[m, p])
            low_grad = w * b[m, p] @ g
            b_grad[m, p] += w * np.outer(low, g)
            a_grad[m, :, p] += np.outer(u, low_grad)
            u_grad[i] += a[m, :, p] @ low_grad
    return delta, u_grad, weight_grad, a_grad, b_grad


@functools.cache
def compiled(name, count, axis, dtype=jnp.float32):
    """A compiled function of the routing that returns what `plain` does, by this dispatch."""
    sizes = {8: dict(expert=8), 4: dict(expert=4, tensor=2), 2: dict(expert=2, fsdp=2, data=2)}
    mesh = create_mesh(ONE_DEVICE | sizes[axis])
    config = ThinkingConfig(experts=count, rank=R, dispatch=name)
    inputs = (U, WEIGHT, Experts(*experts_of(count)))
    inputs = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), inputs)
    inputs = (inputs[0].astype(dtype), *inputs[1:])

    def loss(inputs, expert):
        u, weight, experts = inputs
        dispatch = get_dispatch(config, B, N, D, dtype)
        assert dispatch.name == name
        experts = dispatch.prepare_experts(experts, "thinking/layer_0/experts", dtype)
        delta = dispatch(u, expert, weight, experts)
        return jnp.sin(delta).sum(), delta

    run = jax.jit(jax.grad(loss, has_aux=True))

    def call(expert):
        with jax.set_mesh(mesh):
            grads, delta = run(inputs, jnp.asarray(expert, jnp.int32))
        return delta, grads[0], grads[1], grads[2].lora_a, grads[2].lora_b

    return call


def routings(count):
    tokens, experts = B * N, st.integers(0, count - 1)
    return st.one_of(
        experts.map(lambda m: [m] * tokens),  # all tokens to one expert
        st.lists(st.sampled_from(sorted({0, count - 1})), min_size=tokens, max_size=tokens),
        st.lists(experts, min_size=tokens, max_size=tokens),
        # Some tokens have no expert, as those that have halted.
        st.lists(st.integers(0, count), min_size=tokens, max_size=tokens),
    )


def check(count, axis, examples):
    """Raise an AssertionError if a dispatch differs from the plain loop for any routing."""

    @hypothesis.settings(max_examples=examples, deadline=None, derandomize=True, database=None)
    @hypothesis.given(routings(count))
    def all_dispatches_are_plain(routing):
        expert = np.array(routing).reshape(B, N)
        wanted = plain(expert, count)
        for name in DISPATCHES:
            for ours, theirs in zip(compiled(name, count, axis)(expert), wanted, strict=True):
                limit = 1e-5 * max(1, np.abs(theirs).max())
                np.testing.assert_allclose(ours, theirs, rtol=0, atol=limit, err_msg=name)

    all_dispatches_are_plain = hypothesis.example([count] * (B * N))(all_dispatches_are_plain)
    all_dispatches_are_plain()
    expert = np.arange(B * N).reshape(B, N) % count
    names = "expert_parallel", "dense"
    found, wanted = (compiled(name, count, axis, jnp.bfloat16)(expert) for name in names)
    assert found[0].dtype == wanted[0].dtype == jnp.bfloat16
    for ours, theirs in zip(found, wanted, strict=True):
        ours, theirs = np.asarray(ours, float), np.asarray(theirs, float)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=0.02 * np.abs(theirs).max())


if __name__ == "__main__":
    for case in sys.argv[2:]:
        check(*map(int, case.split(":")), int(sys.argv[1]))
        print(case, flush=True)

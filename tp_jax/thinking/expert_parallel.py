"""Expert parallelism: tokens travel to the devices that hold their experts, and back in order.

B samples, N tokens, D width, M experts. On one device: S tokens, E devices along the mesh axis
`expert`, m = M/E experts, C rows for each of the E devices.

Every device has a queue of tokens for every other. Turn by turn it sends C rows of each queue, the
owners compute, and the rows come back; there are as many turns as the longest queue needs, so no
token is dropped, whatever the routing, and buffers don't grow with it. An even routing takes one.
The gradient goes the same ways, with the outputs' gradients beside the rows.
"""

# jax and flax leave parts of what their functions take and return without a type.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import dataclasses
import functools
import operator
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from tp_jax.parallel.mesh import AXES, BATCH_AXES
from tp_jax.thinking.cost import SLACK
from tp_jax.thinking.experts import Experts, Form

# u, expert, weight and experts of `expert_parallel`.
Arguments = tuple[jax.Array, jax.Array, jax.Array, Experts]
# The turn, and gradients so far of rows, weights and experts.
Sums = tuple[jax.Array | int, jax.Array, jax.Array, Experts]
AXIS = "expert"
TOKENS = PartitionSpec(BATCH_AXES)
EXPERTS = Experts(
    cast("Any", PartitionSpec(AXIS)), cast("Any", PartitionSpec(AXIS, None, None, "tensor"))
)
DELTA = PartitionSpec(BATCH_AXES, None, None, "tensor")
# Axes that the experts are the same along; `tensor` cuts B alone.
REPLICAS = tuple(axis for axis in BATCH_AXES if axis != AXIS)


def padded(leaf: jax.Array, axis: int, devices: int) -> jax.Array:
    """Experts of zeros added, so that every device has as many."""
    widths = [(0, 0)] * leaf.ndim
    widths[axis] = (0, -leaf.shape[axis] % devices)
    return jnp.pad(leaf, widths)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def expert_parallel(
    u: jax.Array, expert: jax.Array, weight: jax.Array, experts: Experts, local: Form
) -> jax.Array:
    """Δ of every token by its own expert, on the mesh in context.

    Args:
      u: [B, N, D] tokens, as the experts see them.
      expert: [B, N] int32.
      weight: [B, N] float32.
      experts: M a multiple of E, cut along `expert`, and B's D along `tensor`.
      local: a form of `dispatch.LOCAL`, for the rows and the experts of one device.

    Returns:
      [B, N, 3, D].
    """
    return jax.shard_map(
        functools.partial(_forward, local=local),
        in_specs=(TOKENS, TOKENS, TOKENS, EXPERTS),
        out_specs=DELTA,
        check_vma=False,
    )(u, expert, weight, experts)


def _with_residuals(
    u: jax.Array, expert: jax.Array, weight: jax.Array, experts: Experts, local: Form
) -> tuple[jax.Array, Arguments]:
    return expert_parallel(u, expert, weight, experts, local), (u, expert, weight, experts)


def _gradients(
    local: Form, residuals: Arguments, gradient: jax.Array
) -> tuple[jax.Array, np.ndarray, jax.Array, Experts]:
    u_grad, weight_grad, experts_grad = jax.shard_map(
        functools.partial(_backward, local=local),
        in_specs=(TOKENS, TOKENS, TOKENS, EXPERTS, DELTA),
        out_specs=(TOKENS, TOKENS, EXPERTS),
        check_vma=False,
    )(*residuals, gradient)
    expert = residuals[1]
    return u_grad, np.zeros(expert.shape, jax.dtypes.float0), weight_grad, experts_grad


expert_parallel.defvjp(_with_residuals, _gradients)


def _forward(
    u: jax.Array, expert: jax.Array, weight: jax.Array, experts: Experts, *, local: Form
) -> jax.Array:
    queues = _Queues.of(expert, len(experts.lora_a))
    rows, weights = u.reshape(-1, u.shape[-1]), weight.reshape(-1)

    def turn(state: tuple[jax.Array | int, jax.Array]) -> tuple[jax.Array | int, jax.Array]:
        number, delta = state
        sent = queues.at(number)
        computed = _compute(local, experts, sent, sent.send(rows), sent.send(weights))
        return number + 1, sent.put(delta, sent.bring_back(computed))

    delta = jnp.zeros((len(rows), 3, experts.lora_b.shape[-1]), u.dtype)
    _, delta = jax.lax.while_loop(lambda state: state[0] < queues.turns, turn, (0, delta))
    return delta.reshape(*expert.shape, *delta.shape[1:])


def _backward(
    u: jax.Array,
    expert: jax.Array,
    weight: jax.Array,
    experts: Experts,
    gradient: jax.Array,
    *,
    local: Form,
) -> tuple[jax.Array, jax.Array, Experts]:
    queues = _Queues.of(expert, len(experts.lora_a))
    rows, weights = u.reshape(-1, u.shape[-1]), weight.reshape(-1)
    gradient = gradient.reshape(len(rows), 3, -1)

    def turn(state: Sums) -> Sums:
        number, rows_grad, weights_grad, experts_grad = state
        sent = queues.at(number)

        def compute(r: jax.Array, w: jax.Array, e: Experts) -> jax.Array:
            return _compute(local, e, sent, r, w)

        _, vjp = jax.vjp(compute, sent.send(rows), sent.send(weights), experts)
        found = vjp(sent.send(gradient))
        rows_grad = sent.put(rows_grad, sent.bring_back(found[0]))
        weights_grad = sent.put(weights_grad, sent.bring_back(found[1]))
        experts_grad = jax.tree.map(operator.add, experts_grad, found[2])
        return number + 1, rows_grad, weights_grad, experts_grad

    def no_gradient(leaf: jax.Array) -> jax.Array:
        return jnp.zeros(leaf.shape, jnp.float32)

    def as_stored(gradient: jax.Array, leaf: jax.Array) -> jax.Array:
        return gradient.astype(leaf.dtype)

    totals: Experts = jax.tree.map(no_gradient, experts)
    start = 0, jnp.zeros_like(rows), jnp.zeros_like(weights), totals
    _, rows_grad, weights_grad, experts_grad = jax.lax.while_loop(
        lambda state: state[0] < queues.turns, turn, start
    )
    # Each device along `tensor` saw a part of Δ's features.
    rows_grad, weights_grad = jax.lax.psum((rows_grad, weights_grad), "tensor")
    experts_grad = Experts(
        jax.lax.psum(experts_grad.lora_a, (*REPLICAS, "tensor")),
        jax.lax.psum(experts_grad.lora_b, REPLICAS),
    )
    experts_grad = jax.tree.map(as_stored, experts_grad, experts)
    return rows_grad.reshape(u.shape), weights_grad.reshape(weight.shape), experts_grad


def _compute(
    local: Form, experts: Experts, sent: "_Turn", rows: jax.Array, weights: jax.Array
) -> jax.Array:
    """Δ [E, C, 3, D] of rows [E, C, D] that came from the E devices."""

    def flat(x: jax.Array) -> jax.Array:
        return x.reshape(1, -1, *x.shape[2:])

    delta = local(flat(rows), flat(sent.experts_here), flat(weights), experts)
    return delta.reshape(*rows.shape[:2], 3, -1)


@dataclasses.dataclass(frozen=True)
class _Queues:
    """Of one device: its tokens in the order of their experts, and so of their owners.

    Attributes:
      order: [S] int32 tokens.
      expert: [S] int32, of the tokens in that order, counted within its owner.
      start, count: [E] int32, where each owner's queue begins and how long it is.
      rows: C.
      experts: m.
      turns: as many as the longest queue of all devices needs.
    """

    order: jax.Array
    expert: jax.Array
    start: jax.Array
    count: jax.Array
    rows: int
    experts: int
    turns: jax.Array

    @classmethod
    def of(cls, expert: jax.Array, experts: int) -> "_Queues":
        """Queues for the experts [B, N] of this device's tokens; m are on each device."""
        expert, devices = expert.reshape(-1), jax.lax.axis_size(AXIS)
        order = jnp.argsort(expert)
        count = jnp.bincount(expert // experts, length=devices).astype(jnp.int32)
        even = round(SLACK * len(expert) / devices)
        rows = min(len(expert), max(8, -(-even // 8) * 8))
        turns = jax.lax.pmax(jnp.max(-(-count // rows)), AXES)
        start = jnp.cumsum(count) - count
        return cls(order, expert[order] % experts, start, count, rows, experts, turns)

    def at(self, turn: jax.Array | int) -> "_Turn":
        """What goes at a turn."""
        place = turn * self.rows + jnp.arange(self.rows)
        valid = place < self.count[:, None]
        index = jnp.minimum(self.start[:, None] + place, len(self.order) - 1)
        going = jnp.clip(self.count - turn * self.rows, 0, self.rows)
        coming = jax.lax.all_to_all(going, AXIS, 0, 0, tiled=True)
        # Rows of nobody are of an expert that isn't.
        expert = jnp.where(valid, self.expert[index], self.experts)
        here = jax.lax.all_to_all(expert, AXIS, 0, 0, tiled=True)
        token = jnp.where(valid, self.order[index], len(self.order))
        return _Turn(token, going, coming, here)


@dataclasses.dataclass(frozen=True)
class _Turn:
    """One exchange.

    Attributes:
      token: [E, C] int32 that go to each device; S is none.
      going, coming: [E] int32, how many rows are tokens.
      experts_here: [E, C] int32, of the rows that came; m is none.
    """

    token: jax.Array
    going: jax.Array
    coming: jax.Array
    experts_here: jax.Array

    def send(self, x: jax.Array) -> jax.Array:
        """Values [S, …] of the tokens that go -> [E, C, …] of those that came, zeros for none."""
        return _exchange(x.at[self.token].get(mode="fill", fill_value=0), self.going, self.coming)

    def bring_back(self, x: jax.Array) -> jax.Array:
        """What was made of the rows that came -> the same of those that went."""
        return _exchange(x, self.coming, self.going)

    def put(self, x: jax.Array, rows: jax.Array) -> jax.Array:
        """x [S, …] with the rows [E, C, …] that came back at their tokens' places."""
        return x.at[self.token].set(rows, mode="drop")


def _exchange(x: jax.Array, going: jax.Array, coming: jax.Array) -> jax.Array:
    """Block e of [E, C, …] goes to device e; on TPUs only the rows that are tokens."""
    if x.ndim == 2:  # Single numbers: a row of its own for each would take more.
        return jax.lax.all_to_all(x, AXIS, 0, 0, tiled=True)

    def whole(x: jax.Array, going: jax.Array, coming: jax.Array) -> jax.Array:
        return jax.lax.all_to_all(x, AXIS, 0, 0, tiled=True)

    def ragged(x: jax.Array, going: jax.Array, coming: jax.Array) -> jax.Array:
        devices, rows = x.shape[:2]
        flat = x.reshape(devices * rows, -1)
        start = jnp.arange(devices, dtype=jnp.int32) * rows
        mine = jnp.full(devices, jax.lax.axis_index(AXIS) * rows, jnp.int32)
        out = jax.lax.ragged_all_to_all(
            flat, jnp.zeros_like(flat), start, going, mine, coming, axis_name=AXIS
        )
        return out.reshape(x.shape)

    return jax.lax.platform_dependent(x, going, coming, tpu=ragged, default=whole)

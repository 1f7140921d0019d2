"""Expert parallelism: send every token to the device that holds its expert, and its Δ back.

B samples, N tokens, D width, M experts. On one device: S tokens, E devices along the mesh axis
`expert`, m = M/E experts, capacity C (rows in the buffer for each of the E devices).

Every device has one queue of tokens for each device of its `expert` group. In each round it sends
at most C tokens of every queue, the receivers apply their experts, and the results are sent back.
The number of rounds follows the longest queue, so no token is dropped whatever the routing, and
buffers have a fixed size. Uniform routing needs one round.

The backward pass runs the same rounds. It sends the gradients of Δ together with the tokens.
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

from tp_jax.parallel.axes import AXES, BATCH_AXES
from tp_jax.thinking.cost import CAPACITY_FACTOR
from tp_jax.thinking.experts import DispatchFunction, Experts

# Arguments u, expert, weight and experts of `expert_parallel`.
Arguments = tuple[jax.Array, jax.Array, jax.Array, Experts]
# State of the backward loop: round number, then the gradients of tokens, weights and experts.
BackwardState = tuple[jax.Array | int, jax.Array, jax.Array, Experts]
AXIS = "expert"
TOKENS = PartitionSpec(BATCH_AXES)
EXPERTS = Experts(
    cast("Any", PartitionSpec(AXIS)), cast("Any", PartitionSpec(AXIS, None, None, "tensor"))
)
DELTA = PartitionSpec(BATCH_AXES, None, None, "tensor")
# Mesh axes along which the experts are replicated. (`tensor` shards only lora_b.)
REPLICAS = tuple(axis for axis in BATCH_AXES if axis != AXIS)


def pad_experts(leaf: jax.Array, axis: int, devices: int) -> jax.Array:
    """Add zero experts along `axis` until their number is a multiple of `devices`."""
    widths = [(0, 0)] * leaf.ndim
    widths[axis] = (0, -leaf.shape[axis] % devices)
    return jnp.pad(leaf, widths)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def expert_parallel(
    u: jax.Array, expert: jax.Array, weight: jax.Array, experts: Experts, local: DispatchFunction
) -> jax.Array:
    """Compute Δ of every token with its expert, on the mesh in context.

    Args:
      u: [B, N, D] tokens.
      expert: [B, N] int32, the expert of each token; M for a token without expert, which is sent
        nowhere and gets Δ = 0.
      weight: [B, N] float32, the factor of each token's Δ.
      experts: M experts, M a multiple of E, sharded along `expert`; the last axis of lora_b is
        sharded along `tensor`.
      local: one of `dispatch.LOCAL_DISPATCHES`, which computes on each device.

    Returns:
      Δ [B, N, 3, D] in the dtype of u.
    """
    return jax.shard_map(
        functools.partial(_forward, local=local),
        in_specs=(TOKENS, TOKENS, TOKENS, EXPERTS),
        out_specs=DELTA,
        check_vma=False,
    )(u, expert, weight, experts)


def _with_residuals(
    u: jax.Array, expert: jax.Array, weight: jax.Array, experts: Experts, local: DispatchFunction
) -> tuple[jax.Array, Arguments]:
    return expert_parallel(u, expert, weight, experts, local), (u, expert, weight, experts)


def _gradients(
    local: DispatchFunction, residuals: Arguments, gradient: jax.Array
) -> tuple[jax.Array, np.ndarray, jax.Array, Experts]:
    u_grad, weight_grad, experts_grad = jax.shard_map(
        functools.partial(_backward, local=local),
        in_specs=(TOKENS, TOKENS, TOKENS, EXPERTS, DELTA),
        out_specs=(TOKENS, TOKENS, EXPERTS),
        check_vma=False,
    )(*residuals, gradient)
    expert = residuals[1]
    # JAX requires float0 zeros as the gradient of an integer argument.
    return u_grad, np.zeros(expert.shape, jax.dtypes.float0), weight_grad, experts_grad


expert_parallel.defvjp(_with_residuals, _gradients)


def _forward(
    u: jax.Array,
    expert: jax.Array,
    weight: jax.Array,
    experts: Experts,
    *,
    local: DispatchFunction,
) -> jax.Array:
    queues = _Queues.from_routing(expert, len(experts.lora_a))
    tokens, weights = u.reshape(-1, u.shape[-1]), weight.reshape(-1)

    def run_round(state: tuple[jax.Array | int, jax.Array]) -> tuple[jax.Array | int, jax.Array]:
        number, delta = state
        exchange = queues.get_round(number)
        computed = _compute(local, experts, exchange, exchange.send(tokens), exchange.send(weights))
        return number + 1, exchange.scatter(delta, exchange.send_back(computed))

    delta = jnp.zeros((len(tokens), 3, experts.lora_b.shape[-1]), u.dtype)
    _, delta = jax.lax.while_loop(lambda state: state[0] < queues.rounds, run_round, (0, delta))
    return delta.reshape(*expert.shape, *delta.shape[1:])


def _backward(
    u: jax.Array,
    expert: jax.Array,
    weight: jax.Array,
    experts: Experts,
    gradient: jax.Array,
    *,
    local: DispatchFunction,
) -> tuple[jax.Array, jax.Array, Experts]:
    queues = _Queues.from_routing(expert, len(experts.lora_a))
    tokens, weights = u.reshape(-1, u.shape[-1]), weight.reshape(-1)
    gradient = gradient.reshape(len(tokens), 3, -1)

    def run_round(state: BackwardState) -> BackwardState:
        number, tokens_grad, weights_grad, experts_grad = state
        exchange = queues.get_round(number)

        def compute(tokens: jax.Array, weights: jax.Array, experts: Experts) -> jax.Array:
            return _compute(local, experts, exchange, tokens, weights)

        _, vjp = jax.vjp(compute, exchange.send(tokens), exchange.send(weights), experts)
        grads = vjp(exchange.send(gradient))
        tokens_grad = exchange.scatter(tokens_grad, exchange.send_back(grads[0]))
        weights_grad = exchange.scatter(weights_grad, exchange.send_back(grads[1]))
        experts_grad = jax.tree.map(operator.add, experts_grad, grads[2])
        return number + 1, tokens_grad, weights_grad, experts_grad

    def zeros_in_float32(leaf: jax.Array) -> jax.Array:
        return jnp.zeros(leaf.shape, jnp.float32)

    def cast_like(gradient: jax.Array, leaf: jax.Array) -> jax.Array:
        return gradient.astype(leaf.dtype)

    experts_zero: Experts = jax.tree.map(zeros_in_float32, experts)
    start = 0, jnp.zeros_like(tokens), jnp.zeros_like(weights), experts_zero
    _, tokens_grad, weights_grad, experts_grad = jax.lax.while_loop(
        lambda state: state[0] < queues.rounds, run_round, start
    )
    # Each device along `tensor` computed some of Δ's features only, so sum over them.
    tokens_grad, weights_grad = jax.lax.psum((tokens_grad, weights_grad), "tensor")
    experts_grad = Experts(
        jax.lax.psum(experts_grad.lora_a, (*REPLICAS, "tensor")),
        jax.lax.psum(experts_grad.lora_b, REPLICAS),
    )
    experts_grad = jax.tree.map(cast_like, experts_grad, experts)
    return tokens_grad.reshape(u.shape), weights_grad.reshape(weight.shape), experts_grad


def _compute(
    local: DispatchFunction,
    experts: Experts,
    exchange: "_Round",
    tokens: jax.Array,
    weights: jax.Array,
) -> jax.Array:
    """Compute Δ [E, C, 3, D] of received tokens [E, C, D] and weights [E, C]."""

    def flatten(x: jax.Array) -> jax.Array:
        return x.reshape(1, -1, *x.shape[2:])

    delta = local(flatten(tokens), flatten(exchange.expert), flatten(weights), experts)
    return delta.reshape(*tokens.shape[:2], 3, -1)


@dataclasses.dataclass(frozen=True)
class _Queues:
    """The tokens of one device sorted by expert, and so by the device that holds the expert.

    Attributes:
      token: [S] int32, token indices in sorted order.
      expert: [S] int32, the expert of each sorted token, as an index into its device's m experts.
      start: [E] int32, where the queue for each device begins in `token`.
      count: [E] int32, length of the queue for each device.
      capacity: C.
      experts: m.
      rounds: number of rounds, as many as the longest queue of all devices needs.
    """

    token: jax.Array
    expert: jax.Array
    start: jax.Array
    count: jax.Array
    capacity: int
    experts: int
    rounds: jax.Array

    @classmethod
    def from_routing(cls, expert: jax.Array, experts: int) -> "_Queues":
        """Build the queues.

        Args:
          expert: [B, N] int32 (the local shard), the expert of each token.
          experts: number m of experts on each device.
        """
        expert, devices = expert.reshape(-1), jax.lax.axis_size(AXIS)
        token = jnp.argsort(expert)
        count = jnp.bincount(expert // experts, length=devices).astype(jnp.int32)
        uniform = round(CAPACITY_FACTOR * len(expert) / devices)
        capacity = min(len(expert), max(8, -(-uniform // 8) * 8))
        rounds = jax.lax.pmax(jnp.max(-(-count // capacity)), AXES)
        start = jnp.cumsum(count) - count
        return cls(token, expert[token] % experts, start, count, capacity, experts, rounds)

    def get_round(self, number: jax.Array | int) -> "_Round":
        """Return which tokens are sent and received in round `number`."""
        position = number * self.capacity + jnp.arange(self.capacity)
        valid = position < self.count[:, None]
        index = jnp.minimum(self.start[:, None] + position, len(self.token) - 1)
        sent = jnp.clip(self.count - number * self.capacity, 0, self.capacity)
        received = jax.lax.all_to_all(sent, AXIS, 0, 0, tiled=True)
        # Padding rows get the out-of-range expert m, and the out-of-range token S.
        expert = jnp.where(valid, self.expert[index], self.experts)
        expert = jax.lax.all_to_all(expert, AXIS, 0, 0, tiled=True)
        token = jnp.where(valid, self.token[index], len(self.token))
        return _Round(token, sent, received, expert)


@dataclasses.dataclass(frozen=True)
class _Round:
    """One exchange of tokens.

    Attributes:
      token: [E, C] int32, indices of the tokens sent to each device; S in padding rows.
      sent, received: [E] int32, number of rows that are tokens, to and from each device.
      expert: [E, C] int32, the local expert of each received row; m in padding rows.
    """

    token: jax.Array
    sent: jax.Array
    received: jax.Array
    expert: jax.Array

    def send(self, x: jax.Array) -> jax.Array:
        """Send values [S, …] of this round's tokens, and return the received ones [E, C, …].

        Padding rows are zeros.
        """
        rows = x.at[self.token].get(mode="fill", fill_value=0)
        return _exchange(rows, self.sent, self.received)

    def send_back(self, x: jax.Array) -> jax.Array:
        """Return results [E, C, …] of received rows to their senders, in the order of `token`."""
        return _exchange(x, self.received, self.sent)

    def scatter(self, x: jax.Array, rows: jax.Array) -> jax.Array:
        """Write rows [E, C, …] into x [S, …] at this round's tokens; padding rows are dropped."""
        return x.at[self.token].set(rows, mode="drop")


def _exchange(x: jax.Array, sent: jax.Array, received: jax.Array) -> jax.Array:
    """Send block e of x [E, C, …] to device e.

    On TPUs only the rows that are tokens are sent; `sent` [E] and `received` [E] count them.
    """
    if x.ndim == 2:  # one number per row: the ragged exchange would cost more
        return jax.lax.all_to_all(x, AXIS, 0, 0, tiled=True)

    def full(x: jax.Array, sent: jax.Array, received: jax.Array) -> jax.Array:
        return jax.lax.all_to_all(x, AXIS, 0, 0, tiled=True)

    def ragged(x: jax.Array, sent: jax.Array, received: jax.Array) -> jax.Array:
        devices, rows = x.shape[:2]
        flat = x.reshape(devices * rows, -1)
        start = jnp.arange(devices, dtype=jnp.int32) * rows
        offset = jnp.full(devices, jax.lax.axis_index(AXIS) * rows, jnp.int32)
        out = jax.lax.ragged_all_to_all(
            flat, jnp.zeros_like(flat), start, sent, offset, received, axis_name=AXIS
        )
        return out.reshape(x.shape)

    return jax.lax.platform_dependent(x, sent, received, tpu=ragged, default=full)

"""Dispatch: brings every token to its expert. All forms give the same values and gradients.

B samples, N tokens, D width, M experts, r rank. No form drops a token, whatever the routing.
A form is a function `(u [B,N,D], expert [B,N], weight [B,N], experts) -> Δ [B,N,3,D]`; adding
one is adding it to `DISPATCHES`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from tp_jax.parallel.chips import find_chip
from tp_jax.thinking.experts import Experts

Dispatch = Callable[[jax.Array, jax.Array, jax.Array, Experts], jax.Array]


def dense(u: jax.Array, expert: jax.Array, weight: jax.Array, experts: Experts) -> jax.Array:
    """Multiplies by all experts joined into one matrix and masks those that weren't chosen.

    12·M·D·r FLOPs a token, in two large matrix products and nothing else.
    """
    lora_a, lora_b = experts.lora_a.astype(u.dtype), experts.lora_b.astype(u.dtype)
    chosen = jax.nn.one_hot(expert, lora_a.shape[0]) * weight[..., None]
    low = jnp.einsum("bnd,mdpr->bnmpr", u, lora_a, preferred_element_type=jnp.float32)
    low = (low * chosen[..., None, None]).astype(u.dtype)
    return jnp.einsum("bnmpr,mprd->bnpd", low, lora_b)


def grouped(u: jax.Array, expert: jax.Array, weight: jax.Array, experts: Experts) -> jax.Array:
    """Sorts tokens by expert, multiplies each group by its own expert, and sorts them back.

    12·D·r FLOPs a token where the hardware's `ragged_dot` is truly grouped.
    """
    batch, tokens, width = u.shape
    count, rank = experts.lora_a.shape[0], experts.lora_a.shape[-1]
    lora_a, lora_b = experts.lora_a.astype(u.dtype), experts.lora_b.astype(u.dtype)
    expert, weight = expert.reshape(-1), weight.reshape(-1)
    order = jnp.argsort(expert)
    sizes = jnp.bincount(expert, length=count)
    low = jax.lax.ragged_dot(
        u.reshape(-1, width)[order],
        lora_a.reshape(count, width, 3 * rank),
        sizes,
        preferred_element_type=jnp.float32,
    )
    low = (low * weight[order, None]).astype(u.dtype).reshape(-1, 3, rank)
    delta = jnp.stack(
        [jax.lax.ragged_dot(low[:, i], lora_b[:, i], sizes) for i in range(3)], axis=1
    )
    return delta[jnp.argsort(order)].reshape(batch, tokens, 3, width)


DISPATCHES: dict[str, Dispatch] = {"dense": dense, "grouped": grouped}


def choose_dispatch(experts: int, width: int, rank: int, device_kind: str) -> str:
    """The cost rule behind `dispatch="auto"`: the form with the lower time bound per token.

    Dense spends (M - 1)·12·D·r FLOPs on experts that weren't chosen. Grouped instead moves
    tokens: D values in and 3·D out, each read and written once more, in bfloat16. Where
    `ragged_dot` isn't grouped (see `Chip.grouped_matmul`) it costs as much as dense and the
    moving comes on top, so dense wins there for every M.
    """
    chip = find_chip(device_kind)
    if chip is None or not chip.grouped_matmul:
        return "dense"
    wasted_seconds = (experts - 1) * 12 * width * rank / chip.peak_flops
    moving_seconds = 2 * 2 * (width + 3 * width) / chip.bandwidth
    return "grouped" if moving_seconds < wasted_seconds else "dense"


def get_dispatch(name: str, experts: int, width: int, rank: int) -> Dispatch:
    """The form of this name; "auto" applies the cost rule to the first device here."""
    if name == "auto":
        name = choose_dispatch(experts, width, rank, jax.devices()[0].device_kind)
    return DISPATCHES[name]

"""Softmax attention in operations of XLA, for any device.

B samples, N tokens, H heads, d features of a head.
"""

# jax leaves parts of what its functions take and return without a type.
# pyright: reportUnknownMemberType=false

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

# Name of what the forward pass keeps, for the policies of `jax.checkpoint`.
RESIDUALS = "xla attention"
# Axes of `jax.lax.dot_general` for arrays [B, H, N, d] or [B, H, N, N], batched over samples and
# heads. The contracted axes are both the last, the last and the third, or both the third.
_LAST = (((3,), (3,)), ((0, 1), (0, 1)))
_LAST_WITH_THIRD = (((3,), (2,)), ((0, 1), (0, 1)))
_THIRD = (((2,), (2,)), ((0, 1), (0, 1)))


@jax.custom_vjp
def xla_attention(qkv: jax.Array) -> jax.Array:
    """Compute attention, with the softmax in float32.

    The backward pass computes the attention weights [B, H, N, N] again, instead of storing them
    (Dao et al., arXiv 2205.14135).

    Args:
      qkv: [B, N, 3, H, d], queries, keys and values.

    Returns:
      [B, N, H, d].
    """
    q, k, v = _split(qkv)
    weights, total = _softmax(q, k)
    out = jax.lax.dot_general(
        weights.astype(v.dtype), v, _LAST_WITH_THIRD, preferred_element_type=jnp.float32
    )
    return (out / total).astype(v.dtype).swapaxes(1, 2)


def _split(qkv: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return queries, keys and values, each [B, H, N, d]."""
    q, k, v = (qkv[:, :, i].swapaxes(1, 2) for i in range(3))
    return q, k, v


def _softmax(q: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the weights [B, H, N, N], not yet divided by the denominators [B, H, N, 1]."""
    logits = jax.lax.dot_general(q, k, _LAST, preferred_element_type=jnp.float32)
    logits *= q.shape[-1] ** -0.5
    weights = jnp.exp(logits - logits.max(-1, keepdims=True))
    return weights, weights.sum(-1, keepdims=True)


def _forward(qkv: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    # The denominators are not kept: XLA's CPU back end fuses all of attention into one operation
    # only if nothing else is used of it.
    out = checkpoint_name(xla_attention(qkv), RESIDUALS)
    return out, (qkv, out)


def _backward(residuals: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array]:
    qkv, out = residuals
    q, k, v = _split(qkv)
    inner = (gradient.astype(jnp.float32) * out).sum(-1).swapaxes(1, 2)[..., None]
    gradient = gradient.swapaxes(1, 2)
    weights, total = _softmax(q, k)
    weights /= total
    d_v = jax.lax.dot_general(weights.astype(v.dtype), gradient, _THIRD)
    d_weights = jax.lax.dot_general(gradient, v, _LAST, preferred_element_type=jnp.float32)
    d_logits = (weights * (d_weights - inner) * q.shape[-1] ** -0.5).astype(q.dtype)
    d_q = jax.lax.dot_general(d_logits, k, _LAST_WITH_THIRD)
    d_k = jax.lax.dot_general(d_logits, q, _THIRD)
    return (jnp.stack([d.swapaxes(1, 2) for d in (d_q, d_k, d_v)], axis=2),)


xla_attention.defvjp(_forward, _backward)

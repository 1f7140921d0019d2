"""Softmax attention, the only implementation that the models use."""

import jax
import jax.numpy as jnp

from tp_jax.models.config import AttentionImplementation


def cudnn_applies(dtype: jnp.dtype, head_dim: int) -> bool:
    """Return whether cuDNN's fused attention supports this dtype and head size here."""
    return (
        jax.default_backend() == "gpu"
        and dtype in (jnp.bfloat16, jnp.float16)
        and head_dim <= 128
        and head_dim % 8 == 0
    )


def attention(
    qkv: jax.Array, heads: int, implementation: AttentionImplementation = "auto"
) -> jax.Array:
    """Compute softmax attention over all tokens of a sample, with the softmax in float32.

    Args:
      qkv: [B, N, 3, H, D/H], queries, keys and values.
      heads: number of heads H.
      implementation: "xla", "cudnn", or "auto", which uses cuDNN where `cudnn_applies`.

    Returns:
      [B, N, D], the heads concatenated.

    Example:
      >>> attention(jnp.zeros((2, 16, 3, 4, 8)), heads=4).shape
      (2, 16, 32)
    """
    q, k, v = (qkv[:, :, i] for i in range(3))
    if implementation == "auto":
        implementation = "cudnn" if cudnn_applies(q.dtype, q.shape[-1]) else "xla"
    out = jax.nn.dot_product_attention(q, k, v, implementation=implementation)
    return out.reshape(*out.shape[:2], heads * out.shape[-1])


def split_heads(qkv: jax.Array, heads: int) -> jax.Array:
    """Reshape [..., D] to [..., H, D/H]."""
    return qkv.reshape(*qkv.shape[:-1], heads, -1)

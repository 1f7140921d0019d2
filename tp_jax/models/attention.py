"""The one attention function."""

import jax
import jax.numpy as jnp

from tp_jax.models.config import AttentionImplementation


def cudnn_applies(dtype: jnp.dtype, head_dim: int) -> bool:
    """Whether cuDNN's fused attention takes this dtype and head size on this machine."""
    return (
        jax.default_backend() == "gpu"
        and dtype in (jnp.bfloat16, jnp.float16)
        and head_dim <= 128
        and head_dim % 8 == 0
    )


def attention(
    qkv: jax.Array, heads: int, implementation: AttentionImplementation = "auto"
) -> jax.Array:
    """Softmax attention among all tokens of a sample.

    Args:
      qkv: [B, N, 3, H, D/H], the axis of 3 being queries, keys, values.
      heads: number of heads H.
      implementation: "xla", "cudnn", or "auto", which takes cuDNN where it applies.

    Returns:
      [B, N, D], heads joined; the softmax is in float32.
    """
    q, k, v = (qkv[:, :, i] for i in range(3))
    if implementation == "auto":
        implementation = "cudnn" if cudnn_applies(q.dtype, q.shape[-1]) else "xla"
    out = jax.nn.dot_product_attention(q, k, v, implementation=implementation)
    return out.reshape(*out.shape[:2], heads * out.shape[-1])


def split_heads(qkv: jax.Array, heads: int) -> jax.Array:
    """[..., D] -> [..., H, D/H]."""
    return qkv.reshape(*qkv.shape[:-1], heads, -1)

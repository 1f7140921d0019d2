"""Softmax attention, the only implementations that the models use, and the choice between them."""

from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from tp_jax.messages.errors import UserError
from tp_jax.models.config import AttentionImplementation, TransformerConfig
from tp_jax.models.splash import splash_attention, splash_bytes, xla_bytes
from tp_jax.models.xla_attention import xla_attention
from tp_jax.parallel.mesh import device_kind

EXACT = ("highest", "float32")  # names of the precision that computes float32 products exactly
# cuDNN's backward pass returned NaN for some numbers of tokens that its tiles don't divide, and not
# with sequence lengths (issues 160 and 1072 of NVIDIA/cudnn-frontend, 196678 of pytorch/pytorch).
CUDNN_TILE = 128


def why_not(implementation: AttentionImplementation, dtype: jnp.dtype, head_dim: int) -> str | None:
    """Return why the devices of the mesh in context can't run an implementation; None if they can.

    Args:
      implementation: "auto", "xla", "cudnn" or "splash".
      dtype: compute dtype.
      head_dim: features of a head.
    """
    if implementation == "splash":
        precision = cast(Any, jax.config).jax_default_matmul_precision or "default"
        if not device_kind().startswith("TPU"):
            return f"needs a TPU, and this runs on {device_kind()}"
        if precision not in ("default", "bfloat16", *EXACT * (dtype == jnp.float32)):
            return f"can't compute {dtype} with matmul precision {precision!r}"
    if implementation == "cudnn":
        if not _is_ampere_or_later():
            return f"needs an NVIDIA GPU, Ampere or later, and this runs on {device_kind()}"
        if dtype not in (jnp.bfloat16, jnp.float16):
            return f"needs bfloat16 or float16, and config.model.dtype is {dtype}"
        if head_dim > 128 or head_dim % 8:
            return (
                f"needs heads of at most 128 features, a multiple of 8, and these have {head_dim}"
            )
    return None


def _is_ampere_or_later() -> bool:
    device: Any = jax.devices()[0]
    return (
        device.platform == "gpu"
        and device_kind() == device.device_kind
        and "cuda" in device.client.platform_version
        and float(device.compute_capability) >= 8
    )


def check_attention(config: TransformerConfig, mesh: Mesh) -> None:
    """Raise a UserError if the devices of a mesh can't run `config.attention`."""
    with jax.set_mesh(mesh):
        _check(config.attention, jnp.dtype(config.dtype), config.width // config.heads)


def _check(implementation: AttentionImplementation, dtype: jnp.dtype, head_dim: int) -> None:
    reason = why_not(implementation, dtype, head_dim)
    if reason:
        raise UserError(f'config.model.attention={implementation!r} {reason}: use "auto"')


def choose_attention(shape: tuple[int, ...], dtype: jnp.dtype) -> AttentionImplementation:
    """Return the implementation that "auto" stands for on the mesh in context.

    On GPUs that is cuDNN wherever it applies. On TPUs it is splash attention if it moves at most
    half the bytes that XLA moves, which writes and reads the N² scores of every head. Half, because
    the count leaves out what it costs to start the computation of each block.

    Args:
      shape: (B, N, H, d) of queries, keys and values.
      dtype: compute dtype.
    """
    tokens, head_dim = shape[1], shape[3]
    if why_not("cudnn", dtype, head_dim) is None:
        return "cudnn"
    if why_not("splash", dtype, head_dim) is None:
        moved = splash_bytes(tokens, head_dim, dtype.itemsize)
        if 2 * moved <= xla_bytes(tokens, dtype.itemsize):
            return "splash"
    return "xla"


def attention(
    qkv: jax.Array, heads: int, implementation: AttentionImplementation = "auto"
) -> jax.Array:
    """Compute softmax attention over all tokens of a sample, with the softmax in float32.

    Args:
      qkv: [B, N, 3, H, D/H], queries, keys and values.
      heads: number of heads H.
      implementation: "xla", "cudnn", "splash", or "auto", see `choose_attention`.

    Returns:
      [B, N, D], the heads concatenated.

    Raises:
      UserError: cuDNN can't run here; see also `check_attention`.

    Example:
      >>> attention(jnp.zeros((2, 16, 3, 4, 8)), heads=4).shape
      (2, 16, 32)
    """
    if implementation == "auto":
        implementation = choose_attention(qkv[:, :, 0].shape, qkv.dtype)
    if implementation == "cudnn":
        # Splash attention can be traced anywhere, as for the shapes of the parameters.
        _check(implementation, qkv.dtype, qkv.shape[-1])
    if implementation == "xla":
        out = xla_attention(qkv)
    else:
        q, k, v = (qkv[:, :, i] for i in range(3))
        out = {"cudnn": cudnn, "splash": splash_attention}[implementation](q, k, v)
    return out.reshape(*out.shape[:2], heads * out.shape[-1])


def cudnn(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Compute attention [B, N, H, d] with cuDNN, for any number of tokens.

    The tokens are padded to whole tiles, and cuDNN gets the number of tokens, see `CUDNN_TILE`.
    """
    batch, tokens = q.shape[:2]
    padding = -tokens % CUDNN_TILE
    if not padding:
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
    q, k, v = (jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0))) for x in (q, k, v))
    lengths = jnp.full((batch,), tokens, jnp.int32)
    out = jax.nn.dot_product_attention(
        q, k, v, query_seq_lengths=lengths, key_value_seq_lengths=lengths, implementation="cudnn"
    )
    return out[:, :tokens]


def split_heads(qkv: jax.Array, heads: int) -> jax.Array:
    """Reshape [..., D] to [..., H, D/H]."""
    return qkv.reshape(*qkv.shape[:-1], heads, -1)

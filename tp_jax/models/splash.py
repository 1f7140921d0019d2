"""Softmax attention on TPUs without N² scores in memory: jax's splash attention kernel.

B samples, N tokens, H heads, d features of a head. The kernel (Dao et al., arXiv 2205.14135)
multiplies blocks of queries by blocks of keys in on-chip memory and keeps a running softmax in
float32, forward and backward.
"""

import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from tp_jax.parallel.axes import BATCH_AXES
from tp_jax.parallel.mesh import batch_shards

LANES = 128  # block sizes are multiples of it
MAX_BLOCK = 768  # tokens; larger blocks fill the on-chip memory that a kernel may use
# Name of the kernel's results in a policy of `jax.checkpoint`.
RESIDUALS = "splash attention"


def block_size(tokens: int) -> int:
    """Return the number of tokens in a block: it pads little, and isn't small.

    Example:
      >>> block_size(333), block_size(4096), block_size(4250)
      (384, 512, 640)
    """
    if tokens <= MAX_BLOCK:
        return padded(tokens, LANES)
    return min(range(MAX_BLOCK, MAX_BLOCK // 2 - 1, -LANES), key=lambda size: padded(tokens, size))


def padded(tokens: int, block: int) -> int:
    """Return the smallest multiple of `block` that is at least `tokens`."""
    return -(-tokens // block) * block


def xla_bytes(tokens: int, itemsize: int) -> int:
    """Return the bytes of scores that XLA's attention moves for one head of a sample, forward.

    It writes the N² scores of a head in float32, reads them for their maximum and for their sum,
    and writes and reads the probabilities in the compute dtype.

    Args:
      tokens: N.
      itemsize: bytes per number in the compute dtype.
    """
    return tokens**2 * (3 * 4 + 2 * itemsize)


def splash_bytes(tokens: int, features: int, itemsize: int) -> int:
    """Return the bytes that splash attention moves for one head of a sample, forward.

    Queries and results move once, keys and values once for every block of queries, with the
    features of a head padded to whole lanes. All four are also brought into that layout or out of
    it, which reads and writes them once.

    Args:
      tokens: N.
      features: d.
      itemsize: bytes per number in the compute dtype.
    """
    block = block_size(tokens)
    length, lanes = padded(tokens, block), padded(features, LANES)
    return length * itemsize * (lanes * (2 + 2 * length // block) + 4 * (features + lanes))


def splash_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, interpret: bool = False
) -> jax.Array:
    """Compute softmax attention over all tokens of a sample with the TPU kernel.

    On a mesh each device computes its own samples and, along the mesh axis `tensor`, its own heads.

    Args:
      q, k, v: [B, N, H, d], float32 or bfloat16.
      interpret: run the kernel slowly, on any device, for tests.

    Returns:
      [B, N, H, d] in the dtype of q.
    """
    local = functools.partial(_on_one_device, interpret=interpret)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return local(q, k, v)
    # Initialisation traces one sample, whatever the mesh.
    batch = BATCH_AXES if q.shape[0] % batch_shards(mesh) == 0 else None
    heads = "tensor" if q.shape[2] % mesh.shape["tensor"] == 0 else None
    axes = PartitionSpec(batch, None, heads)
    # XLA can't partition a kernel by itself.
    return jax.shard_map(local, in_specs=(axes,) * 3, out_specs=axes, check_vma=False)(q, k, v)


def _on_one_device(q: jax.Array, k: jax.Array, v: jax.Array, interpret: bool) -> jax.Array:
    # Imported here because importing Pallas is slow and only TPUs need it.
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    batch, tokens, heads, features = q.shape
    block = block_size(tokens)
    length = padded(tokens, block)

    def prepare(x: jax.Array) -> jax.Array:
        """[B, N, H, d] -> [B·H, padded N, d]; to the kernel, every head of every sample is one."""
        x = x.swapaxes(1, 2).reshape(batch * heads, tokens, features)
        return jnp.pad(x, ((0, 0), (0, length - tokens), (0, 0)))

    sizes: dict[str, Any] = dict.fromkeys(
        ("block_q", "block_kv", "block_q_dkv", "block_kv_dkv"), block
    )
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([splash.FullMask((length, length))] * (batch * heads)),
        block_sizes=splash.BlockSizes(**sizes, use_fused_bwd_kernel=True),
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=RESIDUALS,
        interpret=interpret,
    )
    segments = None
    if length > tokens:
        # Tokens attend to those of the same segment only, so none attends to the padding.
        segment = (jnp.arange(length) >= tokens).astype(jnp.int32)
        segments = splash.SegmentIds(segment, segment)
    # The kernel doesn't scale. In bfloat16 a rounded factor would scale all scores wrongly.
    scaled = (q.astype(jnp.float32) * features**-0.5).astype(q.dtype)
    out = cast(jax.Array, kernel(prepare(scaled), prepare(k), prepare(v), segments))
    return out[:, :tokens].reshape(batch, heads, tokens, features).swapaxes(1, 2)

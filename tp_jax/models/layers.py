"""Layers that DiT and MMDiT share.

B samples, N tokens, L text tokens, D width, C channels, p patch size.
"""

from collections.abc import Callable
from typing import Any

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tp_jax.parallel.sharding import gather

xavier = nn.initializers.xavier_uniform()
zeros = nn.initializers.zeros_init()


def dense(
    features: int,
    name: str,
    dtype: jnp.dtype,
    kernel_init: nn.initializers.Initializer = xavier,
    *,
    path: str | None = None,
) -> nn.Dense:
    """A linear layer with float32 parameters that computes in `dtype`.

    Args:
      path: of its parameters, for their sharding rules, where the layer is in no stack: a stack
        gathers the weights of its blocks.
    """
    return nn.Dense(
        features,
        dtype=dtype,
        kernel_init=kernel_init,
        name=name,
        dot_general=_gathering(path) if path else None,
    )


def _gathering(path: str) -> Callable[..., jax.Array]:
    """`jax.lax.dot_general` whose kernel, the parameter of this path, is gathered before."""

    def dot_general(x: jax.Array, kernel: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        kernel = gather({"kernel": kernel}, path)["kernel"]
        return jax.lax.dot_general(x, kernel, *args, **kwargs)

    return dot_general


def layer_norm(x: jax.Array) -> jax.Array:
    """LayerNorm without affine, eps 1e-6, statistics in float32, result in x's dtype."""
    x32 = x.astype(jnp.float32)
    centred = x32 - x32.mean(-1, keepdims=True)
    return (centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-6)).astype(
        x.dtype
    )


def modulate(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    """adaLN: x [B, N, D] · (1 + scale [B, D]) + shift [B, D]."""
    return x * (1 + scale[:, None]) + shift[:, None]


class AdaLN(nn.Module):
    """SiLU, then one linear layer to `chunks` modulations, each [B, D]; zero-initialised."""

    width: int
    chunks: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, y: jax.Array) -> tuple[jax.Array, ...]:
        """y [B, D] -> `chunks` arrays [B, D]."""
        # One [D, chunks·D] matrix, in the order of the published weights.
        kernel = self.param("kernel", zeros, (self.width, self.chunks * self.width))
        bias = self.param("bias", zeros, (self.chunks * self.width,))
        out = jnp.dot(jax.nn.silu(y), kernel.astype(self.dtype)) + bias.astype(self.dtype)
        return tuple(jnp.split(out, self.chunks, axis=-1))


class QKV(nn.Module):
    """Q, K and V projections, held in one array and handed out as a pure function.

    The recursion calls it inside `jax.lax.scan`, where a bound Flax module can't be called.
    """

    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self) -> Callable[[jax.Array], jax.Array]:
        """Returns x [B, N, D] -> [B, N, 3, D]."""

        def init(key, shape):
            return xavier(key, (shape[0], shape[1] * shape[2])).reshape(shape)

        kernel = self.param("kernel", init, (self.width, 3, self.width)).astype(self.dtype)
        bias = self.param("bias", zeros, (3, self.width)).astype(self.dtype)
        return lambda x: jnp.einsum("bnd,dpe->bnpe", x, kernel) + bias


class RMSNorm(nn.Module):
    """RMS norm over the last axis with a scale, eps 1e-6; float32 inside.

    A module that hands out a pure function, for the same reason as `QKV`.
    """

    features: int

    @nn.compact
    def __call__(self) -> Callable[[jax.Array], jax.Array]:
        """Returns x [..., features] -> the same, normed."""
        scale = self.param("scale", nn.initializers.ones_init(), (self.features,))

        def norm(x):
            x32 = x.astype(jnp.float32)
            mean_square = jnp.square(x32).mean(-1, keepdims=True)
            return (x32 * jax.lax.rsqrt(mean_square + 1e-6) * scale).astype(x.dtype)

        return norm


class Mlp(nn.Module):
    """Linear, tanh GELU, linear."""

    width: int
    hidden: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., D] -> [..., D]."""
        x = nn.gelu(dense(self.hidden, "in", self.dtype)(x), approximate=True)
        return dense(self.width, "out", self.dtype)(x)


class EmbedMlp(nn.Module):
    """Linear, SiLU, linear: the embedding of timesteps and of pooled text."""

    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, features] -> [B, D]."""
        normal = nn.initializers.normal(0.02)
        x = nn.silu(dense(self.width, "in", self.dtype, normal, path=f"{self.name}/in")(x))
        return dense(self.width, "out", self.dtype, normal, path=f"{self.name}/out")(x)


def timestep_embedding(timestep: jax.Array, features: int = 256) -> jax.Array:
    """Sinusoids [B, features] of timesteps [B]: first cosines, then sines, max period 1e4."""
    half = features // 2
    frequencies = jnp.exp(-np.log(10_000) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = timestep.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def position_embedding(width: int, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Fixed 2-D sin-cos embedding [len(rows)·len(columns), D] float32.

    The first half of the features encodes the column, the second the row; each half is sines,
    then cosines. Source: facebookresearch/DiT, after MAE.
    """
    frequencies = 1 / 10_000 ** (np.arange(width // 4, dtype=np.float64) / (width / 4))

    def encode(positions):
        angles = np.outer(positions, frequencies)
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)

    grid_rows, grid_columns = np.meshgrid(rows, columns, indexing="ij")
    halves = [encode(grid_columns.ravel()), encode(grid_rows.ravel())]
    return np.concatenate(halves, axis=-1).astype(np.float32)


def patchify(x: jax.Array, patch: int) -> jax.Array:
    """Images [B, H, W, C] to tokens [B, N, p·p·C], row-major."""
    return einops.rearrange(x, "b (h p) (w q) c -> b (h w) (p q c)", p=patch, q=patch)


def unpatchify(x: jax.Array, patch: int, height: int, width: int) -> jax.Array:
    """Tokens [B, N, p·p·C] back to images [B, height, width, C]."""
    return einops.rearrange(
        x, "b (h w) (p q c) -> b (h p) (w q) c",
        h=height // patch, w=width // patch, p=patch, q=patch,
    )  # fmt: skip

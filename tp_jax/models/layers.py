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
    """Return a linear layer with float32 parameters that computes in `dtype`.

    Args:
      features: output features.
      name: of the Flax module.
      dtype: compute dtype.
      kernel_init: initialiser of the kernel; the bias starts at zero.
      path: path of its parameters in the model, by which their sharding rule is found. Give it for
        layers outside the stacks of blocks. (`stack.run_stacks` gathers the weights of blocks.)
    """

    def dot_general(x: jax.Array, kernel: jax.Array, *_: Any, **__: Any) -> jax.Array:
        return linear(x, gather({"kernel": kernel}, path)["kernel"] if path else kernel)

    return nn.Dense(
        features, dtype=dtype, kernel_init=kernel_init, name=name, dot_general=dot_general
    )


def linear(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Multiply x [..., D] by a kernel [D, F], as one product of two matrices.

    On CPUs, XLA is slow at the gradients of a product of [B, N, D]: it contracts two axes for that
    of the kernel, or transposes and copies a factor. So the leading axes are joined to one, and the
    gradient of the kernel is computed in the layout of the kernel.
    """
    return _product(x.reshape(-1, x.shape[-1]), kernel).reshape(*x.shape[:-1], kernel.shape[-1])


@jax.custom_vjp
def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.dot(x, kernel)


def _product_forward(
    x: jax.Array, kernel: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    # Not `_product`: `jax.checkpoint` would not see that this is a matrix product.
    return jax.lax.dot(x, kernel), (x, kernel)


def _product_backward(
    factors: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = factors
    return (
        jax.lax.dot_general(gradient, kernel, (((1,), (1,)), ((), ()))),
        jax.lax.dot_general(x, gradient, (((0,), (0,)), ((), ()))),
    )


_product.defvjp(_product_forward, _product_backward)


def layer_norm(x: jax.Array) -> jax.Array:
    """Apply LayerNorm (eps 1e-6, no scale or bias) in float32; the result has x's dtype."""
    x32 = x.astype(jnp.float32)
    centred = x32 - x32.mean(-1, keepdims=True)
    return (centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-6)).astype(
        x.dtype
    )


def modulate(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    """Apply an adaLN modulation: x [B, N, D] · (1 + scale [B, D]) + shift [B, D]."""
    return x * (1 + scale[:, None]) + shift[:, None]


class AdaLN(nn.Module):
    """SiLU, then a zero-initialised linear layer that gives `chunks` modulations, each [B, D]."""

    width: int
    chunks: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, y: jax.Array) -> tuple[jax.Array, ...]:
        """Map y [B, D] to `chunks` arrays [B, D]."""
        # The kernel is one [D, chunks·D] matrix, as in the published weights.
        kernel = self.param("kernel", zeros, (self.width, self.chunks * self.width))
        bias = self.param("bias", zeros, (self.chunks * self.width,))
        out = jnp.dot(jax.nn.silu(y), kernel.astype(self.dtype)) + bias.astype(self.dtype)
        return tuple(jnp.split(out, self.chunks, axis=-1))


class QKV(nn.Module):
    """Q, K and V projections with one kernel, returned as a pure function.

    The recursion calls that function inside `jax.lax.scan`, where a bound Flax module can't be
    called.
    """

    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self) -> Callable[[jax.Array], jax.Array]:
        """Return the function x [B, N, D] -> [B, N, 3, D]."""

        def init(key, shape):
            return xavier(key, (shape[0], shape[1] * shape[2])).reshape(shape)

        kernel = self.param("kernel", init, (self.width, 3, self.width)).astype(self.dtype)
        bias = self.param("bias", zeros, (3, self.width)).astype(self.dtype)

        def project(x: jax.Array) -> jax.Array:
            qkv = linear(x, kernel.reshape(self.width, 3 * self.width)) + bias.reshape(-1)
            return qkv.reshape(*x.shape[:-1], 3, self.width)

        return project


class RMSNorm(nn.Module):
    """RMS norm over the last axis, with a scale (eps 1e-6), computed in float32.

    It returns a pure function, for the same reason as `QKV`.
    """

    features: int

    @nn.compact
    def __call__(self) -> Callable[[jax.Array], jax.Array]:
        """Return the function x [..., features] -> [..., features]."""
        scale = self.param("scale", nn.initializers.ones_init(), (self.features,))

        def norm(x):
            x32 = x.astype(jnp.float32)
            mean_square = jnp.square(x32).mean(-1, keepdims=True)
            return (x32 * jax.lax.rsqrt(mean_square + 1e-6) * scale).astype(x.dtype)

        return norm


class Mlp(nn.Module):
    """Linear layer, GELU (tanh approximation), linear layer."""

    width: int
    hidden: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map x [..., D] to [..., D]."""
        x = nn.gelu(dense(self.hidden, "in", self.dtype)(x), approximate=True)
        return dense(self.width, "out", self.dtype)(x)


class EmbedMlp(nn.Module):
    """Linear layer, SiLU, linear layer: embeds timesteps and pooled text."""

    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map x [B, features] to [B, D]."""
        normal = nn.initializers.normal(0.02)
        x = nn.silu(dense(self.width, "in", self.dtype, normal, path=f"{self.name}/in")(x))
        return dense(self.width, "out", self.dtype, normal, path=f"{self.name}/out")(x)


def timestep_embedding(timestep: jax.Array, features: int = 256) -> jax.Array:
    """Embed timesteps [B] as sinusoids [B, features], cosines first; the longest period is 1e4."""
    half = features // 2
    frequencies = jnp.exp(-np.log(10_000) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = timestep.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def position_embedding(width: int, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return the fixed 2-D sin-cos embedding [len(rows)·len(columns), D] float32.

    The first half of the features encodes the column and the second the row; each half has sines
    first, then cosines. Source: facebookresearch/DiT, after MAE.

    Args:
      width: D, a multiple of 4.
      rows, columns: coordinates of the patches.
    """
    frequencies = 1 / 10_000 ** (np.arange(width // 4, dtype=np.float64) / (width / 4))

    def encode(positions):
        angles = np.outer(positions, frequencies)
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)

    grid_rows, grid_columns = np.meshgrid(rows, columns, indexing="ij")
    halves = [encode(grid_columns.ravel()), encode(grid_rows.ravel())]
    return np.concatenate(halves, axis=-1).astype(np.float32)


def patchify(x: jax.Array, patch: int) -> jax.Array:
    """Cut images [B, H, W, C] into tokens [B, N, p·p·C] in row-major order.

    Example:
      >>> patchify(jnp.zeros((1, 8, 8, 3)), patch=2).shape
      (1, 16, 12)
    """
    return einops.rearrange(x, "b (h p) (w q) c -> b (h w) (p q c)", p=patch, q=patch)


def unpatchify(x: jax.Array, patch: int, height: int, width: int) -> jax.Array:
    """Join tokens [B, N, p·p·C] to images [B, height, width, C]; the inverse of `patchify`."""
    return einops.rearrange(
        x, "b (h w) (p q c) -> b (h p) (w q) c",
        h=height // patch, w=width // patch, p=patch, q=patch,
    )  # fmt: skip

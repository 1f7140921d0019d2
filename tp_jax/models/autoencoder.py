"""The autoencoder of Stable Diffusion, which encodes images to latents and decodes them.

B images, H×W pixels, h×w latents, c latent channels. The results equal those of diffusers'
AutoencoderKL.
Sources: Rombach et al. (arXiv 2112.10752); Esser et al. (arXiv 2403.03206) for 16 channels.
"""

import dataclasses
from collections.abc import Callable
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp

from tp_jax.messages.errors import UserError
from tp_jax.models.attention import attention, split_heads
from tp_jax.models.layers import QKV, dense
from tp_jax.values import Range, checked

# The encoder's log variance is clipped to these bounds, as in training.
LOG_VARIANCE = (-30.0, 20.0)
# The scale and shift of latents, which float32 must be able to divide by and add.
Scale = Annotated[float, Range(1e-6, 1e6), "must be 1e-06 to 1e+06"]
Shift = Annotated[float, Range(-1e6, 1e6), "must be -1e+06 to 1e+06"]


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
    """Sizes of an autoencoder; the defaults are those of Stable Diffusion 1.

    Attributes:
      channels: number c of latent channels.
      scale, shift: the diffusion model works on (z - shift)·scale.
      block_widths: channels of each level, starting at full resolution; every further level
        halves height and width.
      layers_per_block: residual blocks per level of the encoder; the decoder has one more.
      norm_groups: groups of every GroupNorm; must divide every width.
      quant_convs: whether a 1×1 convolution follows the encoder and precedes the decoder.

    Raises:
      UserError: `norm_groups` does not divide a width, or scale or shift is out of range.
    """

    channels: int = 4
    scale: float = 0.18215
    shift: float = 0.0
    block_widths: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_groups: int = 32
    quant_convs: bool = True

    def __post_init__(self) -> None:
        checked("the autoencoder's scale", self.scale, Scale)
        checked("the autoencoder's shift", self.shift, Shift)
        if any(width % self.norm_groups for width in self.block_widths):
            raise UserError(
                f"an autoencoder with block_widths={self.block_widths}: each must be a multiple "
                f"of norm_groups={self.norm_groups}"
            )

    @property
    def factor(self) -> int:
        """Return the side in pixels of the square that one latent stands for."""
        return 2 ** (len(self.block_widths) - 1)


def to_latents(config: AutoencoderConfig, z: jax.Array) -> jax.Array:
    """Scale the encoder's z [B, h, w, c] to the latents that the diffusion model works on."""
    return (z - config.shift) * config.scale


def from_latents(config: AutoencoderConfig, latents: jax.Array) -> jax.Array:
    """Scale the latents of the diffusion model back to z [B, h, w, c] for the decoder."""
    return latents / config.scale + config.shift


def split_moments(moments: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Split moments [B, h, w, 2·c], means then log variances, into mean and std [B, h, w, c]."""
    mean, log_variance = jnp.split(moments, 2, axis=-1)
    return mean, jnp.exp(0.5 * jnp.clip(log_variance, *LOG_VARIANCE))


def sample_posterior(mean: jax.Array, std: jax.Array, noise: jax.Array) -> jax.Array:
    """Return a sample z of the encoder's Gaussian from standard normal noise [B, h, w, c]."""
    return mean + std * noise


def conv(width: int, name: str | None, dtype: jnp.dtype, side: int = 3) -> nn.Conv:
    """Return a convolution that keeps height and width, with float32 parameters.

    Args:
      width: output channels.
      name: of the Flax module; None if an attribute in `setup` names it.
      dtype: compute dtype.
      side: of the kernel.
    """
    return nn.Conv(width, (side, side), padding=side // 2, dtype=dtype, name=name)


def group_norm(groups: int, name: str, dtype: jnp.dtype) -> nn.GroupNorm:
    """Return a GroupNorm (eps 1e-6) with float32 statistics and a result in `dtype`."""
    # Flax's fast variance, E[x²] - E[x]², loses precision where the mean of a group is large.
    return nn.GroupNorm(groups, epsilon=1e-6, dtype=dtype, use_fast_variance=False, name=name)


class ResBlock(nn.Module):
    """Residual block: two times GroupNorm, SiLU and convolution."""

    width: int
    groups: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map x [B, H, W, C] to [B, H, W, width]."""
        h = x
        for i in (1, 2):
            h = nn.silu(group_norm(self.groups, f"norm{i}", x.dtype)(h))
            h = conv(self.width, f"conv{i}", x.dtype)(h)
        if x.shape[-1] != self.width:
            x = conv(self.width, "shortcut", x.dtype, side=1)(x)
        return x + h


class MidBlock(nn.Module):
    """Residual block, attention with one head over all positions, residual block."""

    groups: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map x [B, H, W, C] to the same shape."""
        width = x.shape[-1]
        x = ResBlock(width, self.groups, name="res_0")(x)
        h = group_norm(self.groups, "norm", x.dtype)(x)
        qkv = QKV(width, x.dtype, name="qkv")()(h.reshape(len(h), -1, width))
        h = dense(width, "proj", x.dtype)(attention(split_heads(qkv, 1), 1))
        return ResBlock(width, self.groups, name="res_1")(x + h.reshape(x.shape))


class Encoder(nn.Module):
    """The encoder, without the quant convolution."""

    config: AutoencoderConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map images [B, H, W, 3] to moments [B, h, w, 2·c]."""
        cfg, last = self.config, len(self.config.block_widths) - 1
        x = conv(cfg.block_widths[0], "conv_in", x.dtype)(x)
        for level, width in enumerate(cfg.block_widths):
            for layer in range(cfg.layers_per_block):
                x = ResBlock(width, cfg.norm_groups, name=f"level_{level}_res_{layer}")(x)
            if level < last:
                # The published weights were trained with padding at the bottom and right only.
                name = f"level_{level}_down"
                padding = ((0, 1), (0, 1))
                x = nn.Conv(width, (3, 3), 2, padding=padding, dtype=x.dtype, name=name)(x)
        x = MidBlock(cfg.norm_groups, name="mid")(x)
        x = nn.silu(group_norm(cfg.norm_groups, "norm_out", x.dtype)(x))
        return conv(2 * cfg.channels, "conv_out", x.dtype)(x)


class Decoder(nn.Module):
    """The decoder, without the quant convolution."""

    config: AutoencoderConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map z [B, h, w, c] to images [B, H, W, 3]."""
        cfg = self.config
        x = conv(cfg.block_widths[-1], "conv_in", x.dtype)(x)
        x = MidBlock(cfg.norm_groups, name="mid")(x)
        for level, width in reversed(list(enumerate(cfg.block_widths))):
            for layer in range(cfg.layers_per_block + 1):
                x = ResBlock(width, cfg.norm_groups, name=f"level_{level}_res_{layer}")(x)
            if level:
                x = x.repeat(2, axis=1).repeat(2, axis=2)
                x = conv(width, f"level_{level}_up", x.dtype)(x)
        x = nn.silu(group_norm(cfg.norm_groups, "norm_out", x.dtype)(x))
        return conv(3, "conv_out", x.dtype)(x)


class Autoencoder(nn.Module):
    """Encoder and decoder; call its methods with `apply(params, x, method="encode")`.

    Attributes:
      config: its sizes.
      dtype: compute dtype, "float32" or "bfloat16"; parameters and results are float32. The
        precision of float32 products is JAX's `default_matmul_precision`.
    """

    config: AutoencoderConfig
    dtype: str = "float32"

    def setup(self) -> None:
        """Create the submodules."""
        cfg, dtype = self.config, jnp.dtype(self.dtype)
        self.encoder, self.decoder = Encoder(cfg), Decoder(cfg)
        if cfg.quant_convs:
            self.quant = conv(2 * cfg.channels, None, dtype, side=1)
            self.post_quant = conv(cfg.channels, None, dtype, side=1)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Encode images [B, H, W, 3] to the posterior mean and decode it; for `init`."""
        return self.decode(self.encode(images)[0])

    def moments(self, images: jax.Array) -> jax.Array:
        """Encode images [B, H, W, 3] in [-1, 1] to moments [B, h, w, 2·c] float32.

        The first c channels are means, the others log variances.
        """
        x = self.encoder(images.astype(self.dtype))
        x = self.quant(x) if self.config.quant_convs else x
        return x.astype(jnp.float32)

    def encode(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return mean and standard deviation of the posterior of images.

        Args:
          images: [B, H, W, 3] in [-1, 1], any float dtype; H and W multiples of `factor`.

        Returns:
          (mean, std), each [B, h, w, c] float32, unscaled.
        """
        return split_moments(self.moments(images))

    def decode(self, z: jax.Array) -> jax.Array:
        """Decode unscaled z [B, h, w, c] to images [B, H, W, 3] float32, roughly in [-1, 1]."""
        z = z.astype(self.dtype)
        z = self.post_quant(z) if self.config.quant_convs else z
        return self.decoder(z).astype(jnp.float32)


def tiled_encode(
    moments: Callable[[jax.Array], jax.Array], images: jax.Array, factor: int, tile: int = 512
) -> tuple[jax.Array, jax.Array]:
    """Encode large images in overlapping tiles, so that memory doesn't grow with their size.

    Neighbouring tiles overlap by a quarter, where their moments are blended linearly, as in
    diffusers.

    Args:
      moments: `Autoencoder.moments` with its parameters, jitted; called with at most nine shapes.
      images: [B, H, W, 3] in [-1, 1]; H and W multiples of `factor`.
      factor: pixels per latent, `AutoencoderConfig.factor`.
      tile: side of a tile in pixels, a multiple of 4·factor.

    Returns:
      (mean, std), each [B, h, w, c] float32. Images no larger than a tile are encoded whole.

    Raises:
      UserError: the image size is not a multiple of `factor`, or `tile` not of 4·factor.
    """
    _check_tile(tile, factor)
    for size in images.shape[1:3]:
        if size % factor:
            raise UserError(
                f"cannot encode images of {images.shape[1]}×{images.shape[2]} pixels: "
                f"height and width must be multiples of {factor}"
            )
    return split_moments(_run_tiled(moments, images, tile, tile // factor))


def tiled_decode(
    decode: Callable[[jax.Array], jax.Array], z: jax.Array, factor: int, tile: int = 512
) -> jax.Array:
    """Decode large latents in overlapping tiles; see `tiled_encode`.

    Args:
      decode: `Autoencoder.decode` with its parameters, jitted; called with at most nine shapes.
      z: [B, h, w, c] unscaled.
      factor: pixels per latent, `AutoencoderConfig.factor`.
      tile: side of a tile in pixels, a multiple of 4·factor.

    Returns:
      Images [B, h·factor, w·factor, 3] float32.

    Raises:
      UserError: `tile` is not a multiple of 4·factor.
    """
    _check_tile(tile, factor)
    return _run_tiled(decode, z, tile // factor, tile)


def _check_tile(tile: int, factor: int) -> None:
    if tile < 1 or tile % (4 * factor):
        raise UserError(f"tile={tile}: must be a multiple of {4 * factor}")


def _run_tiled(
    run: Callable[[jax.Array], jax.Array], x: jax.Array, tile: int, out_tile: int
) -> jax.Array:
    """Apply `run` to tiles of x and blend the results.

    Args:
      run: maps a tile of x to a tile of the result.
      x: [B, height, width, channels].
      tile: side of a tile of x.
      out_tile: side of a tile of the result.
    """
    height, width = x.shape[1:3]
    if max(height, width) <= tile:
        return run(x)
    stride, blend = tile - tile // 4, out_tile // 4
    rows: list[jax.Array] = []
    above: list[jax.Array] = []
    for top in range(0, height, stride):
        row: list[jax.Array] = []
        for left in range(0, width, stride):
            part = run(x[:, top : top + tile, left : left + tile])
            if above:
                part = _blend(above[len(row)], part, blend, axis=1)
            if row:
                part = _blend(row[-1], part, blend, axis=2)
            row.append(part)
        above, keep = row, out_tile - blend
        rows.append(jnp.concatenate([part[:, :keep, :keep] for part in row], axis=2))
    return jnp.concatenate(rows, axis=1)


def _blend(before: jax.Array, after: jax.Array, extent: int, axis: int) -> jax.Array:
    """Blend the first `extent` rows or columns of `after` with the last ones of `before`."""
    extent = min(extent, before.shape[axis], after.shape[axis])
    fade = jnp.arange(extent, dtype=after.dtype) / extent
    fade = fade.reshape([-1 if i == axis else 1 for i in range(after.ndim)])
    old = jax.lax.slice_in_dim(before, before.shape[axis] - extent, None, axis=axis)
    new, rest = jnp.split(after, [extent], axis=axis)
    return jnp.concatenate([old * (1 - fade) + new * fade, rest], axis=axis)

"""The Inception network of FID (the 2015 weights with 1008 logits), for inference only.

B images. In the published weights a batch norm follows every convolution. Its statistics are
constants, so `pretrained.inception` folds it into the kernel and bias of the convolution.

Modules are named as in mseitzer/pytorch-fid, which ported TensorFlow's graph to torch. As there,
and unlike torchvision's Inception, average pooling leaves out the padding, and the last block has
a max pooling.
Source: Szegedy et al. (arXiv 1512.00567).
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

SIDE = 299  # pixels
SPATIAL_CHANNELS = 7


class InceptionFeatures(NamedTuple):
    """The features from which FID and the other scores are computed, all float32.

    Attributes:
      pool: [B, 2048], the mean over all positions after the last block (TensorFlow's `pool_3`),
        for FID, precision and recall.
      spatial: [B, 2023], the first 7 channels of Mixed_6d (TensorFlow's `mixed_6/conv`), flattened
        from [17, 17, 7], for sFID.
      logits: [B, 1008], without bias as in openai/guided-diffusion, for the Inception Score.
    """

    pool: jax.Array
    spatial: jax.Array
    logits: jax.Array


class Conv(nn.Module):
    """A convolution, with the batch norm folded in, then ReLU."""

    features: int
    kernel: tuple[int, int]
    stride: int = 1
    padding: str = "SAME"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map x [B, H, W, C] to [B, H', W', features]."""
        # Full float32 precision, because scores are compared between machines.
        conv = nn.Conv(
            self.features,
            self.kernel,
            self.stride,
            padding=self.padding,
            precision=jax.lax.Precision.HIGHEST,
            name="conv",
        )
        return nn.relu(conv(x))


def chain(x: jax.Array, *layers: tuple) -> jax.Array:
    """Apply convolutions in sequence, each given as (name, features, kernel side or sides)."""
    for name, features, kernel in layers:
        kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
        x = Conv(features, kernel, name=name)(x)
    return x


def shrink(x: jax.Array, name: str, features: int) -> jax.Array:
    """Apply a 3×3 convolution with stride 2 and no padding."""
    return Conv(features, (3, 3), stride=2, padding="VALID", name=name)(x)


def mean_pool(x: jax.Array) -> jax.Array:
    """Apply a 3×3 average pooling that keeps height and width and leaves out the padding."""
    return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)


def max_pool(x: jax.Array) -> jax.Array:
    """Apply a 3×3 max pooling with stride 2."""
    return nn.max_pool(x, (3, 3), (2, 2))


def join(*branches: jax.Array) -> jax.Array:
    """Concatenate branches along the channels."""
    return jnp.concatenate(branches, axis=-1)


class BlockA(nn.Module):
    """Block at 35×35 positions."""

    pool_features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map x [B, 35, 35, C] to [B, 35, 35, 224 + pool_features]."""
        return join(
            chain(x, ("branch1x1", 64, 1)),
            chain(x, ("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)),
            chain(
                x, ("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)
            ),
            chain(mean_pool(x), ("branch_pool", self.pool_features, 1)),
        )


class BlockB(nn.Module):
    """Block that reduces 35×35 positions to 17×17."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map x [B, 35, 35, C] to [B, 17, 17, 480 + C]."""
        double = chain(x, ("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3))
        return join(shrink(x, "branch3x3", 384), shrink(double, "branch3x3dbl_3", 96), max_pool(x))


class BlockC(nn.Module):
    """Block at 17×17 positions, with 7×7 convolutions factored into 1×7 and 7×1."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map x [B, 17, 17, C] to [B, 17, 17, 768]."""
        width, row, column = self.width, (1, 7), (7, 1)
        return join(
            chain(x, ("branch1x1", 192, 1)),
            chain(
                x,
                ("branch7x7_1", width, 1),
                ("branch7x7_2", width, row),
                ("branch7x7_3", 192, column),
            ),
            chain(
                x,
                ("branch7x7dbl_1", width, 1),
                ("branch7x7dbl_2", width, column),
                ("branch7x7dbl_3", width, row),
                ("branch7x7dbl_4", width, column),
                ("branch7x7dbl_5", 192, row),
            ),
            chain(mean_pool(x), ("branch_pool", 192, 1)),
        )


class BlockD(nn.Module):
    """Block that reduces 17×17 positions to 8×8."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map x [B, 17, 17, C] to [B, 8, 8, 512 + C]."""
        seven = chain(
            x,
            ("branch7x7x3_1", 192, 1),
            ("branch7x7x3_2", 192, (1, 7)),
            ("branch7x7x3_3", 192, (7, 1)),
        )
        return join(
            shrink(chain(x, ("branch3x3_1", 192, 1)), "branch3x3_2", 320),
            shrink(seven, "branch7x7x3_4", 192),
            max_pool(x),
        )


class BlockE(nn.Module):
    """Block at 8×8 positions, with a 1×3 and a 3×1 convolution side by side.

    Attributes:
      pool: "mean" or "max"; the last block has "max".
    """

    pool: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map x [B, 8, 8, C] to [B, 8, 8, 2048]."""
        three = chain(x, ("branch3x3_1", 384, 1))
        double = chain(x, ("branch3x3dbl_1", 448, 1), ("branch3x3dbl_2", 384, 3))
        pooled = nn.max_pool(x, (3, 3), padding="SAME") if self.pool == "max" else mean_pool(x)
        return join(
            chain(x, ("branch1x1", 320, 1)),
            chain(three, ("branch3x3_2a", 384, (1, 3))),
            chain(three, ("branch3x3_2b", 384, (3, 1))),
            chain(double, ("branch3x3dbl_3a", 384, (1, 3))),
            chain(double, ("branch3x3dbl_3b", 384, (3, 1))),
            chain(pooled, ("branch_pool", 192, 1)),
        )


class Inception(nn.Module):
    """The network; `pretrained.load_inception` returns it with its parameters."""

    @nn.compact
    def __call__(self, x: jax.Array) -> InceptionFeatures:
        """Compute the features of images.

        Args:
          x: [B, 299, 299, 3] float32, scaled to about [-1, 1] as in the training of the network.

        Raises:
          ValueError: x has another shape.
        """
        if x.shape[1:] != (SIDE, SIDE, 3):
            raise ValueError(f"Inception expects [B, {SIDE}, {SIDE}, 3], not {list(x.shape)}")
        x = shrink(x, "Conv2d_1a_3x3", 32)
        x = Conv(32, (3, 3), padding="VALID", name="Conv2d_2a_3x3")(x)
        x = max_pool(chain(x, ("Conv2d_2b_3x3", 64, 3)))
        x = chain(x, ("Conv2d_3b_1x1", 80, 1))
        x = max_pool(Conv(192, (3, 3), padding="VALID", name="Conv2d_4a_3x3")(x))
        for name, pool_features in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
            x = BlockA(pool_features, name=name)(x)
        x = BlockB(name="Mixed_6a")(x)
        for name, width in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160)):
            x = BlockC(width, name=name)(x)
        # These channels are from the first branch of the block, which is concatenated first.
        spatial = x[..., :SPATIAL_CHANNELS].reshape(len(x), -1)
        x = BlockD(name="Mixed_7a")(BlockC(192, name="Mixed_6e")(x))
        x = BlockE("max", name="Mixed_7c")(BlockE("mean", name="Mixed_7b")(x))
        pool = x.mean(axis=(1, 2))
        head = nn.Dense(1008, use_bias=False, precision=jax.lax.Precision.HIGHEST, name="fc")
        return InceptionFeatures(pool, spatial, head(pool))

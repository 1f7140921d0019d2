"""Codecs between pixels and the latents that a model diffuses: an autoencoder, or pooling.

Axes: B images of the global batch, H×W pixels, h×w latents of c channels.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar, cast

import einops
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from ml_collections import ConfigDict

from tp_jax.latents.space import LatentSpace
from tp_jax.messages.errors import UserError
from tp_jax.models.autoencoder import (
    from_latents,
    sample_posterior,
    tiled_decode,
    tiled_encode,
    to_latents,
)
from tp_jax.models.parameters import Params
from tp_jax.parallel.axes import BATCH_AXES
from tp_jax.parallel.mesh import deterministic_options
from tp_jax.parallel.randomness import sample_keys, stream_key
from tp_jax.parallel.sharding import replicated
from tp_jax.pretrained.autoencoder import LoadedAutoencoder, load_autoencoder

Tree = TypeVar("Tree")


def load_codec(
    config: ConfigDict, mesh: Mesh, deterministic: bool = False
) -> "Codec | Pooling | None":
    """Build the codec that `config.autoencoder` describes; None if the model diffuses pixels.

    Args:
      config: `config.autoencoder`.
      mesh: the devices over which batches are sharded.
      deterministic: `config.train.deterministic`.

    Raises:
      UserError: `path` isn't a converted autoencoder, `tile` isn't a valid multiple, or both `path`
        and `pool` are set.
    """
    if config.path and config.pool:
        raise UserError(
            f"config.autoencoder.path={config.path} and .pool={config.pool}: set only one of the "
            f"two"
        )
    if config.pool:
        return Pooling(config.pool)
    if not config.path:
        return None
    loaded = load_autoencoder(config.path, config.dtype)
    unit = 4 * loaded.config.factor
    if config.tile % unit:
        raise UserError(f"config.autoencoder.tile={config.tile}: must be 0 or a multiple of {unit}")
    return Codec(loaded, mesh, config.tile, deterministic)


@dataclasses.dataclass(frozen=True)
class Codec:
    """Encode and decode batches sharded over a mesh, with a frozen autoencoder.

    Each device processes its images one at a time, so that the result for an image doesn't depend
    on the rest of the batch; one image is enough to use an accelerator fully. With dtype float32,
    matrix products use float32 on TPUs too.

    Attributes:
      tile: side in pixels of the overlapping tiles that images are split into; 0 doesn't split.
      deterministic: whether `encode` gives the same bits in every run on GPUs.
    """

    autoencoder: LoadedAutoencoder
    mesh: Mesh
    tile: int = 0
    deterministic: bool = False

    @property
    def space(self) -> LatentSpace:
        """The latent space of the autoencoder."""
        config = self.autoencoder.config
        return LatentSpace(
            self.autoencoder.identity, config.channels, config.scale, config.shift, config.factor
        )

    @functools.cached_property
    def _params(self) -> Params:
        return jax.device_put(self.autoencoder.params, replicated(self.mesh))

    def moments(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return mean and std [B, h, w, c], unscaled, of the posteriors of images.

        Args:
          images: [B, H, W, 3] in [-1, 1].
        """
        return self._moments(self._params, images)

    def decode(self, latents: jax.Array) -> jax.Array:
        """Decode scaled latents [B, h, w, c] to images [B, H, W, 3] float32."""
        return self._decode(self._params, latents)

    def encode(self, images: jax.Array, index: jax.Array, seed: int, train_step: int) -> jax.Array:
        """Sample scaled latents [B, h, w, c] from the posteriors of images [B, H, W, 3].

        Args:
          index: [B] int32 position of each image in the global batch.
          seed, train_step: with `index`, they determine the noise of an image.
        """
        # An explicit transfer, because the training loop forbids implicit ones.
        step = jax.device_put(np.int32(train_step), replicated(self.mesh))
        return self._encode(self._params, images, index, seed, step)

    @functools.cached_property
    def _moments(self) -> Callable[[Params, jax.Array], tuple[jax.Array, jax.Array]]:
        return jax.jit(self._per_image(self._moments_of_one))

    @functools.cached_property
    def _decode(self) -> Callable[[Params, jax.Array], jax.Array]:
        return jax.jit(self._per_image(self._decode_one))

    @functools.cached_property
    def _encode(self) -> Callable[..., jax.Array]:
        moments = self._per_image(self._moments_of_one)

        def encode(
            params: Params, images: jax.Array, index: jax.Array, seed: int, train_step: jax.Array
        ) -> jax.Array:
            mean, std = moments(params, images)
            keys = sample_keys(stream_key(seed, "posterior", train_step), index)
            noise = jax.vmap(lambda key: jax.random.normal(key, mean.shape[1:]))(keys)
            return to_latents(self.autoencoder.config, sample_posterior(mean, std, noise))

        options = deterministic_options(self.mesh) if self.deterministic else None
        return jax.jit(encode, static_argnums=3, compiler_options=options)

    def _moments_of_one(self, params: Params, image: jax.Array) -> tuple[jax.Array, jax.Array]:
        model = self.autoencoder.model
        if not self.tile:
            found = model.apply({"params": params}, image, method="encode")
            return cast(tuple[jax.Array, jax.Array], found)

        def run(tile: jax.Array) -> jax.Array:
            return cast(jax.Array, model.apply({"params": params}, tile, method="moments"))

        return tiled_encode(run, image, model.config.factor, self.tile)

    def _decode_one(self, params: Params, latents: jax.Array) -> jax.Array:
        model = self.autoencoder.model
        z = from_latents(model.config, latents)

        def run(tile: jax.Array) -> jax.Array:
            return cast(jax.Array, model.apply({"params": params}, tile, method="decode"))

        return tiled_decode(run, z, model.config.factor, self.tile) if self.tile else run(z)

    def _per_image(
        self, f: Callable[[Params, jax.Array], Tree]
    ) -> Callable[[Params, jax.Array], Tree]:
        """Turn f: (params, [1, …]) -> tree of [1, …] into a function of a batch sharded over B."""

        def local(params: Params, batch: jax.Array) -> Tree:
            with self._precision():
                out = jax.lax.map(lambda one: f(params, one[None]), batch)
            return jax.tree.map(lambda leaf: jnp.squeeze(leaf, 1), out)

        cut = PartitionSpec(BATCH_AXES)
        return jax.shard_map(
            local, mesh=self.mesh, in_specs=(PartitionSpec(), cut), out_specs=cut, check_vma=False
        )

    def _precision(self) -> AbstractContextManager[Any]:
        if self.autoencoder.model.dtype == "float32":
            return jax.default_matmul_precision("float32")
        return contextlib.nullcontext()


@dataclasses.dataclass(frozen=True)
class Pooling:
    """A codec without weights: average pooling encodes, and bicubic upsampling decodes.

    It suits images of a few large objects such as those of `tp_jax.worlds.shapes`: a small model
    learns their layout much sooner on fewer tokens. The interface is that of `Codec`.

    Attributes:
      factor: side in pixels of the square that one latent is the mean of.

    Example:
      >>> codec = Pooling(4)
      >>> images = jnp.ones((2, 32, 32, 3))
      >>> latents = codec.encode(images, jnp.arange(2), seed=0, train_step=0)
      >>> latents.shape, codec.decode(latents).shape
      ((2, 8, 8, 3), (2, 32, 32, 3))
    """

    factor: int

    @property
    def space(self) -> LatentSpace:
        """The latent space: three channels in [-1, 1], unscaled."""
        return LatentSpace(f"pool {self.factor}", 3, 1.0, 0.0, self.factor)

    def encode(self, images: jax.Array, index: jax.Array, seed: int, train_step: int) -> jax.Array:
        """Pool images [B, H, W, 3] to [B, h, w, 3]; the other arguments are ignored."""
        return self._encode(images)

    def decode(self, latents: jax.Array) -> jax.Array:
        """Upsample latents [B, h, w, 3] to images [B, H, W, 3] float32."""
        return self._decode(latents)

    @functools.cached_property
    def _encode(self) -> Callable[[jax.Array], jax.Array]:
        k = self.factor
        return jax.jit(lambda x: einops.reduce(x, "b (h i) (w j) c -> b h w c", "mean", i=k, j=k))

    @functools.cached_property
    def _decode(self) -> Callable[[jax.Array], jax.Array]:
        def decode(z: jax.Array) -> jax.Array:
            batch, height, width, channels = z.shape
            shape = (batch, height * self.factor, width * self.factor, channels)
            return jax.image.resize(z.astype(jnp.float32), shape, "cubic")

        return jax.jit(decode)

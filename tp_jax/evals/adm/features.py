"""Inception features of images, computed on all devices. B images, H×W pixels."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh

from tp_jax.messages.errors import UserError
from tp_jax.models.inception import SIDE
from tp_jax.parallel.axes import DATA_PARALLEL
from tp_jax.parallel.mesh import check_batch_size, create_mesh
from tp_jax.parallel.sharding import batch_sharding, replicated, shard_from_hosts
from tp_jax.pretrained.folder import read_description
from tp_jax.pretrained.inception import KIND, load_inception


def prepare_adm(images: jax.Array) -> jax.Array:
    """Preprocess uint8 [B, H, W, 3] into [B, 299, 299, 3] float32, about [-1, 1].

    Source: the input ops of the Inception graph of 2015, which openai/guided-diffusion uses.
    """
    return (resize(images.astype(jnp.float32), half_pixel=False) - 128) / 128


def prepare_pytorch_fid(images: jax.Array) -> jax.Array:
    """Preprocess uint8 [B, H, W, 3] into [B, 299, 299, 3] float32 in [-1, 1].

    Source: mseitzer/pytorch-fid.
    """
    return 2 * resize(images.astype(jnp.float32) / 255, half_pixel=True) - 1


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How images are preprocessed, and which scores are computed from their features.

    Attributes:
      prepare: preprocesses uint8 [B, H, W, 3] into the network's input [B, 299, 299, 3] float32.
      spatial: whether sFID is defined.
      half: whether the distances of precision and recall are rounded to float16.
    """

    prepare: Callable[[jax.Array], jax.Array]
    spatial: bool
    half: bool


PROTOCOLS = {
    "adm": Protocol(prepare_adm, spatial=True, half=True),
    "pytorch-fid": Protocol(prepare_pytorch_fid, spatial=False, half=False),
}


def interpolation_matrix(size: int, side: int, *, half_pixel: bool) -> np.ndarray:
    """Return the weights [side, size] float32 of 1-D linear interpolation, without antialiasing.

    Positions are computed in float32, as in torch and TensorFlow.

    Args:
      size: number of input pixels.
      side: number of output pixels.
      half_pixel: whether the centre of pixel i is at i + 1/2 (torch with align_corners=False) or
        at i (TensorFlow 1's default).

    Example:
      >>> interpolation_matrix(2, 4, half_pixel=True).tolist()
      [[1.0, 0.0], [0.75, 0.25], [0.25, 0.75], [0.0, 1.0]]
      >>> interpolation_matrix(2, 4, half_pixel=False).tolist()
      [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0], [0.0, 1.0]]
    """
    scale = np.float32(size) / np.float32(side)
    target = np.arange(side, dtype=np.float32)
    if half_pixel:
        source = np.maximum((target + np.float32(0.5)) * scale - np.float32(0.5), 0)
    else:
        source = target * scale
    low = np.minimum(source.astype(np.int64), size - 1)
    high = np.minimum(low + 1, size - 1)
    matrix = np.zeros((side, size), np.float32)
    np.add.at(matrix, (np.arange(side), low), 1 - (source - low))
    np.add.at(matrix, (np.arange(side), high), source - low)
    return matrix


def resize(images: jax.Array, *, half_pixel: bool) -> jax.Array:
    """Resize images [B, H, W, C] bilinearly to [B, 299, 299, C], float32."""
    rows, columns = (
        interpolation_matrix(size, SIDE, half_pixel=half_pixel) for size in images.shape[1:3]
    )
    exact = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    return exact("yh,xw,bhwc->byxc", rows, columns, images, optimize=[(1, 2), (0, 1)])


@dataclasses.dataclass(frozen=True)
class Extractor:
    """A feature network on a mesh.

    Attributes:
      network: (params, [B, 299, 299, 3] float32) -> a pytree with the attributes `pool` [B, D],
        `spatial` [B, S] and `logits` [B, K], such as `models.inception.InceptionFeatures`.
      params: parameters of the network.
      protocol: key of `PROTOCOLS`.
      identity: SHA-256 of the weights; scores are comparable only for equal weights.
      mesh: the devices.
      batch_size: images per batch, a multiple of the number of batch shards of the mesh.
    """

    network: Callable[[Any, jax.Array], Any]
    params: Any
    protocol: str
    identity: str
    mesh: Mesh
    batch_size: int = 64

    def __post_init__(self) -> None:
        check_protocol(self.protocol)
        check_batch_size(self.mesh, "batch_size", self.batch_size)

    def batches(self, images: Iterable[np.ndarray]) -> Iterator[Any]:
        """Yield the network's outputs as NumPy arrays of at most `batch_size` rows, in order.

        Args:
          images: uint8 batches [?, H, W, 3] of any sizes. With several processes, every process
            must pass the same images, and every process receives all rows.
        """
        previous = None
        for batch in rebatch(images, self.batch_size):
            padding = [(0, self.batch_size - len(batch))] + [(0, 0)] * 3
            sharded = shard_from_hosts(np.pad(batch, padding), batch_sharding(self.mesh))
            current = self._run(self._replicated_params, sharded), len(batch)
            # Fetch the previous batch while the devices compute this one.
            if previous:
                yield _fetch(*previous)
            previous = current
        if previous:
            yield _fetch(*previous)

    def output_shapes(self, image_size: tuple[int, int]) -> Any:
        """Return the network's outputs for one image as ShapeDtypeStructs, without computing."""
        image = jax.ShapeDtypeStruct((1, *image_size, 3), jnp.uint8)
        return jax.eval_shape(self._extract, self.params, image)

    @functools.cached_property
    def _replicated_params(self) -> Any:
        return shard_from_hosts(self.params, replicated(self.mesh))

    @functools.cached_property
    def _run(self) -> Callable[..., Any]:
        whole = replicated(self.mesh)
        sharded = batch_sharding(self.mesh)
        return jax.jit(self._extract, in_shardings=(whole, sharded), out_shardings=whole)

    def _extract(self, params: Any, images: jax.Array) -> Any:
        # The TPU default would round matrix products to bfloat16, which changes FID noticeably.
        with jax.default_matmul_precision("highest"):
            return self.network(params, PROTOCOLS[self.protocol].prepare(images))


def check_protocol(name: str) -> None:
    """Raise a UserError unless `name` is a key of `PROTOCOLS`."""
    if name not in PROTOCOLS:
        raise UserError(f"protocol {name!r} is unknown: choose one of {', '.join(PROTOCOLS)}")


def load_extractor(folder: epath.Path, protocol: str, batch_size: int) -> Extractor:
    """Load the Inception network from a folder onto all devices.

    Args:
      folder: converted Inception weights.
      protocol: key of `PROTOCOLS`.
      batch_size: images per batch.

    Raises:
      UserError: the folder or the protocol doesn't exist, or the devices can't share the batch
        evenly.
    """
    check_protocol(protocol)
    mesh = create_mesh(DATA_PARALLEL)
    check_batch_size(mesh, "batch_size", batch_size)
    model, params = load_inception(folder)
    return Extractor(
        lambda params, images: model.apply({"params": params}, images),
        params,
        protocol,
        read_description(folder, KIND).identity,
        mesh,
        batch_size,
    )


def rebatch(batches: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Yield the same rows in batches of `size`; the last batch may be smaller.

    Example:
      >>> [len(batch) for batch in rebatch([np.zeros(3), np.zeros(4)], 5)]
      [5, 2]
    """
    waiting, count = [], 0
    for batch in batches:
        waiting.append(batch)
        count += len(batch)
        while count >= size:
            rows = waiting[0] if len(waiting) == 1 else np.concatenate(waiting)
            yield rows[:size]
            waiting, count = [rows[size:]], count - size
    if count:
        yield np.concatenate(waiting)


def _fetch(features: Any, count: int) -> Any:
    return jax.tree.map(lambda leaf: np.asarray(leaf)[:count], features)

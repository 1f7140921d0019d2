"""Inception features of images, on all devices. B images, H×W pixels."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh, NamedSharding

from tp_jax.messages.errors import UserError
from tp_jax.models.inception import SIDE
from tp_jax.parallel.mesh import DATA_PARALLEL, check_batch_size, create_mesh
from tp_jax.parallel.sharding import batch_sharding, replicated
from tp_jax.pretrained.folder import read_description
from tp_jax.pretrained.inception import KIND, load_inception


def prepare_adm(images: jax.Array) -> jax.Array:
    """uint8 [B, H, W, 3] -> [B, 299, 299, 3] float32, about [-1, 1], as the 2015 graph does."""
    return (resize(images.astype(jnp.float32), half_pixel=False) - 128) / 128


def prepare_pytorch_fid(images: jax.Array) -> jax.Array:
    """uint8 [B, H, W, 3] -> [B, 299, 299, 3] float32 in [-1, 1], as mseitzer/pytorch-fid does."""
    return 2 * resize(images.astype(jnp.float32) / 255, half_pixel=True) - 1


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How images are shown to the network, and what is computed from its features.

    Attributes:
      spatial: whether sFID is defined.
      half: whether distances for precision and recall are rounded to float16.
    """

    prepare: Callable[[jax.Array], jax.Array]
    spatial: bool
    half: bool


PROTOCOLS = {
    "adm": Protocol(prepare_adm, spatial=True, half=True),
    "pytorch-fid": Protocol(prepare_pytorch_fid, spatial=False, half=False),
}


def interpolation_matrix(size: int, side: int, *, half_pixel: bool) -> np.ndarray:
    """Weights [side, size] float32 of bilinear interpolation, without antialiasing.

    Args:
      half_pixel: pixel i lies at i + 1/2, as in torch with align_corners=False; else at i, as in
        TensorFlow 1's default. Positions are computed in float32, as both do.
    """
    scale = np.float32(size) / np.float32(side)
    place = np.arange(side, dtype=np.float32)
    if half_pixel:
        source = np.maximum((place + np.float32(0.5)) * scale - np.float32(0.5), 0)
    else:
        source = place * scale
    low = np.minimum(source.astype(np.int64), size - 1)
    high = np.minimum(low + 1, size - 1)
    matrix = np.zeros((side, size), np.float32)
    np.add.at(matrix, (np.arange(side), low), 1 - (source - low))
    np.add.at(matrix, (np.arange(side), high), source - low)
    return matrix


def resize(images: jax.Array, *, half_pixel: bool) -> jax.Array:
    """Bilinear [B, H, W, C] -> [B, 299, 299, C], float32."""
    rows, columns = (
        interpolation_matrix(size, SIDE, half_pixel=half_pixel) for size in images.shape[1:3]
    )
    exact = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    return exact("yh,xw,bhwc->byxc", rows, columns, images, optimize=[(1, 2), (0, 1)])


@dataclasses.dataclass(frozen=True)
class Extractor:
    """A feature network on a mesh.

    Attributes:
      network: (params, [B, 299, 299, 3] float32) -> an object with `pool` [B, D], `spatial`
        [B, S] and `logits` [B, K]: models.inception.InceptionFeatures, or what is like it.
      protocol: a name in PROTOCOLS.
      identity: SHA-256 of the weights; scores of different ones can't be compared.
      batch_size: images at once, a multiple of the mesh's batch shards.
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
        """Yields what the network gives, as NumPy arrays of at most `batch_size` rows, in order.

        Args:
          images: uint8 batches [?, H, W, 3] of any sizes; with several processes, the same
            ones on each, and each gets all rows.
        """
        before = None
        for batch in rebatched(images, self.batch_size):
            padding = [(0, self.batch_size - len(batch))] + [(0, 0)] * 3
            cut = _place(np.pad(batch, padding), batch_sharding(self.mesh))
            after = self._run(self._placed_params, cut), len(batch)
            # Fetched while the devices are at the next batch.
            if before:
                yield _fetch(*before)
            before = after
        if before:
            yield _fetch(*before)

    def widths(self, image_size: tuple[int, int]) -> Any:
        """What the network gives of one image, as ShapeDtypeStructs; nothing is computed."""
        image = jax.ShapeDtypeStruct((1, *image_size, 3), jnp.uint8)
        return jax.eval_shape(self._extract, self.params, image)

    @functools.cached_property
    def _placed_params(self) -> Any:
        return jax.tree.map(lambda leaf: _place(leaf, replicated(self.mesh)), self.params)

    @functools.cached_property
    def _run(self) -> Callable[..., Any]:
        whole = replicated(self.mesh)
        cut = batch_sharding(self.mesh)
        return jax.jit(self._extract, in_shardings=(whole, cut), out_shardings=whole)

    def _extract(self, params: Any, images: jax.Array) -> Any:
        # On TPU the default would round to bfloat16, which FID sees.
        with jax.default_matmul_precision("highest"):
            return self.network(params, PROTOCOLS[self.protocol].prepare(images))


def check_protocol(name: str) -> None:
    """Raises a UserError unless the protocol exists."""
    if name not in PROTOCOLS:
        raise UserError(f"protocol {name!r} is unknown: choose one of {', '.join(PROTOCOLS)}")


def load_extractor(folder: epath.Path, protocol: str, batch_size: int) -> Extractor:
    """The Inception network of a folder, on all devices here.

    Raises:
      UserError: there is no such network, protocol, or division of the batch.
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


def rebatched(batches: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """The same rows in batches of `size`; the last may be shorter."""
    kept, count = [], 0
    for batch in batches:
        kept.append(batch)
        count += len(batch)
        while count >= size:
            rows = kept[0] if len(kept) == 1 else np.concatenate(kept)
            yield rows[:size]
            kept, count = [rows[size:]], count - size
    if count:
        yield np.concatenate(kept)


def _place(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """Each process brings its own part of an array that all of them hold."""
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def _fetch(features: Any, count: int) -> Any:
    return jax.tree.map(lambda leaf: np.asarray(leaf)[:count], features)

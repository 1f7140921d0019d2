"""A stand-in for the Inception network: random projections of mean colours. And images for it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from PIL import Image

from tp_jax.evals.adm.features import Extractor
from tp_jax.parallel.axes import DATA_PARALLEL
from tp_jax.parallel.mesh import create_mesh

WIDTHS = dict(pool=16, spatial=12, logits=10)


class StandInFeatures(NamedTuple):
    pool: jax.Array
    spatial: jax.Array
    logits: jax.Array


def network(params, x):
    """Features [B, width] of images [B, 299, 299, 3]."""
    tiles = x.reshape(len(x), 13, 23, 13, 23, 3).mean(axis=(2, 4)).reshape(len(x), -1)
    return StandInFeatures(**{name: jnp.abs(tiles @ matrix) for name, matrix in params.items()})


def make_extractor(devices=None, **fields):
    random = np.random.RandomState(5)
    params = {
        name: random.standard_normal((507, width)).astype(np.float32)
        for name, width in WIDTHS.items()
    }
    mesh = create_mesh(DATA_PARALLEL, devices)
    defaults = dict(protocol="adm", identity="stand-in 1", mesh=mesh, batch_size=8)
    return Extractor(network, params, **(defaults | fields))


def random_images(count, side=16, channels=3, seed=0):
    """Images [count, side, side, channels] uint8: noise around a random colour per image."""
    random = np.random.RandomState(seed)
    colour = random.uniform(60, 190, (count, 1, 1, channels))
    noise = 30 * random.standard_normal((count, side, side, channels))
    return np.clip(colour + noise, 0, 255).astype(np.uint8)


def extract_as_process(index, port, out):
    """As process `index` of two, extract features of 21 images and save them to `out`."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", 2, index)
    assert jax.device_count() == 8  # four per process
    np.save(
        out, np.concatenate([part.pool for part in make_extractor().batches([random_images(21)])])
    )


def save_npz(path, compressed=False, **arrays):
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return epath.Path(path)


SAMPLE, REFERENCE = random_images(50, seed=1), random_images(60, seed=2) // 2 + 60


def save_pngs(folder, images):
    folder.mkdir(exist_ok=True)
    for i, picture in enumerate(images):
        Image.fromarray(picture).save(folder / f"{i:05d}.png")
    return epath.Path(folder)

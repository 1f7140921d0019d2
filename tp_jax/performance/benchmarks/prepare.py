"""JPEG to records: decode, crop, and encode with both flips by Stable Diffusion's autoencoder.

It runs the code of `tp_jax.prepare`, with random weights and images of a typical size.
"""

import functools
import io
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from tp_jax.config import default
from tp_jax.data.prepare import encode_images, make_plan
from tp_jax.data.source import Source
from tp_jax.data.transforms import decode_pixels
from tp_jax.latents.codec import Codec
from tp_jax.models.autoencoder import Autoencoder, AutoencoderConfig
from tp_jax.parallel.axes import DATA_PARALLEL
from tp_jax.parallel.mesh import create_mesh
from tp_jax.performance.contenders import random_weights
from tp_jax.performance.measure import Contender, Group, Stream, Timed
from tp_jax.performance.options import BenchOptions
from tp_jax.pretrained.autoencoder import LoadedAutoencoder

RECORDS = 200_000


def groups(options: BenchOptions) -> Iterator[Group]:
    """Yield preparing, and decoding alone: on several cores it is what devices may wait for."""
    batch_size = options.config.prepare.batch_size
    prepare = Contender("JPEG to latents", lambda: _prepare(options.config), images=batch_size)
    yield Group("preparing", (prepare,))
    decode = Contender("decoding on one core", lambda: _decode(options.config), images=1)
    yield Group("decoding", (decode,))


def _prepare(given: ConfigDict) -> Stream:
    config = default()
    config.model.image_size = given.model.image_size
    config.prepare.update(source="photos", records_per_shard=RECORDS)
    config.prepare.batch_size, config.data.workers = given.prepare.batch_size, given.data.workers
    config.autoencoder.dtype = given.autoencoder.dtype
    source, codec = _photos(), _random_codec(config.autoencoder.dtype)
    plan = make_plan(config, source, codec)
    records = encode_images(config, source, plan, codec, None, np.arange(RECORDS), [0])
    return Stream(records, config.prepare.batch_size)


def _decode(config: ConfigDict) -> Timed:
    photo, size = _Photos()[0]["image"], 8 * config.model.image_size
    return Timed(functools.partial(decode_pixels, photo, size, 3))


def _random_codec(dtype: str) -> Codec:
    config = AutoencoderConfig()
    model = Autoencoder(config, dtype)
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    params = random_weights(jax.eval_shape(model.init, jax.random.key(0), image)["params"])
    mesh = create_mesh(DATA_PARALLEL)
    return Codec(LoadedAutoencoder(model, params, config, "random weights"), mesh)


class _Photos:
    """Records with the same JPEG each, of a typical ImageNet size."""

    def __init__(self) -> None:
        colours = np.random.default_rng(0).integers(0, 256, (25, 20, 3), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(colours).resize((500, 400), Image.Resampling.BICUBIC).save(buffer, "jpeg")
        self._photo = buffer.getvalue()

    def __len__(self) -> int:
        return RECORDS

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self._photo, "label": index % 1000}


def _photos() -> Source:
    return Source(_Photos(), None, 3, tuple(str(label) for label in range(1000)))

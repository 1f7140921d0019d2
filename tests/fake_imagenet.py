"""A small fake ImageNet in TFDS's format, and a small autoencoder with random weights."""

import dataclasses
import io

import jax
import numpy as np
from etils import epath
from PIL import Image

from tp_jax.models.autoencoder import Autoencoder, AutoencoderConfig
from tp_jax.pretrained.folder import save_folder

IMAGES = 24


def make_fake_imagenet(folder) -> None:
    """Write the TFDS data set `imagenet2012` with 24 images of several sizes, one per class."""
    import tensorflow_datasets as tfds

    with tfds.core.registered.skip_registration():

        class Imagenet2012(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("5.1.0")

            def _info(self):
                features = {
                    "image": tfds.features.Image(encoding_format="jpeg"),
                    "label": tfds.features.ClassLabel(num_classes=1000),
                    "file_name": tfds.features.Text(),
                }
                features = tfds.features.FeaturesDict(features)
                return tfds.core.DatasetInfo(builder=self, features=features)

            def _split_generators(self, dl_manager):
                return {"train": self._generate_examples()}

            def _generate_examples(self):
                for i in range(IMAGES):
                    name = f"photo_{i}.JPEG"
                    yield name, {"image": io.BytesIO(photo(i)), "label": i, "file_name": name}

    Imagenet2012(data_dir=folder, file_format="array_record").download_and_prepare()


def photo(i: int, kind: str = "jpeg") -> bytes:
    """An encoded smooth colour image with sides of 64 pixels or more."""
    colours = np.random.default_rng(i).integers(0, 256, (4, 4, 3), np.uint8)
    buffer, size = io.BytesIO(), (64 + 9 * (i % 5), 64 + 7 * (i % 7))
    Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC).save(buffer, kind)
    return buffer.getvalue()


def make_autoencoder(folder, seed: int = 0) -> epath.Path:
    """Write a narrow autoencoder with Stable Diffusion's number of levels and random weights."""
    config = AutoencoderConfig(block_widths=(4, 4, 4, 4), layers_per_block=1, norm_groups=2)
    image = np.zeros((1, 16, 16, 3), np.float32)
    shapes = jax.eval_shape(Autoencoder(config).init, jax.random.key(0), image)["params"]
    rng = np.random.default_rng(seed)

    def weight(path, leaf):
        mean = 1.0 if "scale" in jax.tree_util.keystr(path) else 0.0
        fan_in = np.prod(leaf.shape[:-1]) if len(leaf.shape) > 1 else 100
        return (mean + rng.standard_normal(leaf.shape) / np.sqrt(fan_in)).astype(np.float32)

    folder = epath.Path(folder)
    params = jax.tree_util.tree_map_with_path(weight, shapes)
    save_folder(folder, params, "sd-vae", dataclasses.asdict(config), "random weights")
    return folder

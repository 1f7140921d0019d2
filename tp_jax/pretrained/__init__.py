"""Convert published torch weights, and load the converted folders."""

from tp_jax.pretrained.autoencoder import LoadedAutoencoder, load_autoencoder
from tp_jax.pretrained.dit import infer_dit, read_dit
from tp_jax.pretrained.folder import Description, read_description
from tp_jax.pretrained.inception import load_inception
from tp_jax.pretrained.sd3 import infer_sd3, read_sd3

__all__ = [
    "Description",
    "LoadedAutoencoder",
    "infer_dit",
    "infer_sd3",
    "load_autoencoder",
    "load_inception",
    "read_description",
    "read_dit",
    "read_sd3",
]

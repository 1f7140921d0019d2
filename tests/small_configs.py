"""Configs of runs that take seconds, shared by several test files."""

import pathlib
import runpy

from conftest import tiny_config

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"


def tiny_frozenlake(**train_fields):
    """FrozenLake maps of 3×3 and 4×4 cells in 32-pixel frames; layer 1 has three latent steps."""
    config = tiny_config(**train_fields)
    config.data.source = "frozenlake"
    config.frozenlake.update(sizes=(3, 4), unseen_sizes=(), tile=8)
    config.model.update(image_size=32, channels=3, num_classes=0, patch=8, frame="channels")
    config.model.thinking.update(layers=(1,), latent_steps=3)
    config.diffusion.prediction = "data"
    config.train.condition_dropout = 0.0
    config.sampling.guidance_scale = 1.0
    return config


def tiny_shapes():
    """`configs/shapes.py` with a tiny model and two train steps."""
    config = runpy.run_path(str(CONFIGS / "shapes.py"))["get_config"]()
    config.model.update(image_size=8, patch=2, depth=2, width=16, heads=2)
    config.model.update(max_grid=4, base_grid=4)
    config.autoencoder.pool = 2
    config.train.update(steps=2, batch_size=8, log_every=1, sample_every=2, samples=4)
    config.optimizer.warmup_steps = 1
    config.checkpoint.every_steps = 2
    config.sampling.update(steps=2)
    return config

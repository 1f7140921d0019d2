"""What tests of navigation share: a tiny config."""

from conftest import tiny_config


def lake_config(**train_fields):
    """Maps of 3 and 4 cells a side in frames of 32 pixels; one layer thinks three steps."""
    config = tiny_config(**train_fields)
    config.data.source = "frozenlake"
    config.navigation.update(sizes=(3, 4), unseen_sizes=(), tile=8)
    config.model.update(image_size=32, channels=3, num_classes=0, patch=8, frame="channels")
    config.model.thinking.update(layers=(1,), latent_steps=3)
    config.diffusion.prediction = "data"
    config.train.condition_dropout = 0.0
    config.sampling.guidance_scale = 1.0
    return config

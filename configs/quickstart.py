"""Digits in about two minutes on two CPU cores: a small DiT with two thinking blocks."""

from ml_collections import ConfigDict

from tp_jax.config import default


def get_config() -> ConfigDict:
    """The config; every number is ours."""
    config = default(model="dit", diffusion="flow")

    config.data.source = "digits"
    config.model.update(
        image_size=8, channels=1, num_classes=10, patch=2, depth=6, width=128, heads=4
    )
    config.model.thinking.update(layers=(2, 4), experts=2, latent_steps=2, rank=16, gate_width=32)
    config.diffusion.shift = 1.0

    config.train.update(
        steps=2_000, batch_size=128, ema_decay=0.99, log_every=100, sample_every=500, samples=100
    )
    config.optimizer.update(learning_rate=1e-3, schedule="cosine", warmup_steps=100, clip_norm=1.0)
    config.checkpoint.every_steps = 250
    config.sampling.update(sampler="heun", steps=20, guidance_scale=2.0)
    return config

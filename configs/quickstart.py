"""Digits: a small DiT with two thinking blocks, trained in two minutes on two CPU cores."""

from ml_collections import ConfigDict

from tp_jax.config import default


def get_config() -> ConfigDict:
    """Return the config; every number is ours."""
    config = default(model="dit", diffusion="flow")

    config.data.source = "digits"
    # 178 of the 1,797 digits aren't trained on, so that the model can be tested on them.
    config.validation.fraction = 0.1
    config.model.update(
        image_size=8, channels=1, num_classes=10, patch=2, depth=4, width=96, heads=4
    )
    config.model.thinking.update(layers=(1, 2), experts=2, latent_steps=2, rank=8, gate_width=32)
    config.diffusion.shift = 1.0

    config.train.update(
        steps=1_000, batch_size=64, ema_decay=0.99, log_every=50, sample_every=500, samples=100
    )
    config.optimizer.update(learning_rate=2e-3, schedule="cosine", warmup_steps=50, clip_norm=1.0)
    config.checkpoint.every_steps = 250
    config.sampling.update(sampler="heun", steps=20, guidance_scale=1.5)
    return config

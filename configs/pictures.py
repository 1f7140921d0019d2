"""Your own pictures: a small DiT on 32×32 pixels, from a folder with or without class folders.

Give the folder with --config.data.dir=DIR, and the number of its class folders with
--config.model.num_classes=K. The variant `unconditional` is for a folder without class folders.
"""

from ml_collections import ConfigDict

from tp_jax.config import default
from tp_jax.messages.errors import UserError


def get_config(argument: str = "") -> ConfigDict:
    """Return the config; every number is ours.

    Args:
      argument: the variant, "unconditional" or "".
    """
    if argument not in ("", "unconditional"):
        raise UserError(f"--config: unknown variant {argument!r}: the only one is unconditional")
    config = default(model="dit", diffusion="flow")

    config.data.source = "folder"
    config.data.flip = True
    config.model.update(
        image_size=32, channels=3, num_classes=2, patch=4, depth=4, width=128, heads=4
    )
    config.model.thinking.update(layers=(1, 2), experts=2, latent_steps=2, rank=16, gate_width=32)
    # A patch has 48 numbers. Predicting the data instead of the velocity learns much faster here.
    config.diffusion.update(shift=1.0, prediction="data")

    config.train.update(
        steps=2_000, batch_size=32, ema_decay=0.995, log_every=100, sample_every=500, samples=32
    )
    config.optimizer.update(learning_rate=1e-3, schedule="cosine", warmup_steps=100, clip_norm=1.0)
    config.checkpoint.every_steps = 250
    config.sampling.update(sampler="heun", steps=20, guidance_scale=1.5)
    if argument == "unconditional":
        config.model.num_classes = 0
        # Guidance needs a condition.
        config.sampling.guidance_scale = 1.0
    return config

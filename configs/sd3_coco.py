"""Stable Diffusion 3 medium at 1024×1024, frozen, thinking in blocks 4, 8 and 12.

Said by the paper (arXiv 2604.25299): the base, layers 4, 8 and 12, two experts, two latent steps,
rank 128, 1,000 captions of MSCOCO. It doesn't say from where layers are counted: here from 0.
Said by diffusers' script for fine-tuning with LoRA: the learning rate, logit-normal times, two
times 77 text tokens. Said by SD3: shift 3, 28 steps of Euler, guidance 7.
Ours, because neither says: every line marked so.
"""

from ml_collections import ConfigDict

from tp_jax.config import default
from tp_jax.models.mmdit import SIZES


def get_config() -> ConfigDict:
    config = default(model="mmdit", diffusion="flow")
    config.model.update(image_size=128, channels=16, patch=2, **SIZES["SD3-medium"])
    config.model.dtype = "bfloat16"  # ours
    config.model.remat = "full"  # ours
    config.model.thinking.update(layers=(4, 8, 12), experts=2, latent_steps=2, rank=128)
    config.diffusion.shift = 3.0
    config.init.base = "checkpoints/sd3-medium"  # ours
    config.train.update(
        trainable="thinking",
        steps=5_000,  # ours
        batch_size=64,  # ours
        ema_decay=0.999,  # ours
        condition_dropout=0.1,  # ours
    )
    config.optimizer.update(learning_rate=1e-4, clip_norm=1.0)
    config.checkpoint.update(every_steps=500, keep=2)  # ours
    config.sampling.update(sampler="euler", steps=28, guidance_scale=7.0)
    return config

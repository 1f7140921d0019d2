"""Stable Diffusion 3 medium at 1024×1024, frozen, thinking in blocks 4, 8 and 12.

    configs/sd3_coco.py              thinking is trained on the published base, which is frozen
    configs/sd3_coco.py:one-layer    thinking in block 12 alone
    configs/sd3_coco.py:m5t5         five experts, five latent steps
    configs/sd3_coco.py:no-mod       without the block's own modulation of what is thought
    configs/sd3_coco.py:lora         plain LoRA with as many parameters, in the same blocks
    configs/sd3_coco.py:512          at 512×512
    configs/sd3_coco.py:debug        the same shrunk, on random latents and text: a minute anywhere
    configs/sd3_coco.py:m5t5,lora    and so on: lora has as many parameters as what it stands with

Said by the paper (arXiv 2604.25299): the base, layers 4, 8 and 12, two experts, two latent steps,
rank 128, 1,000 samples of MSCOCO; that one layer, five of both, no modulation and plain LoRA are
compared with it. It doesn't say from where layers are counted, here from 0, nor which the one is.
Said by diffusers' script for fine-tuning with LoRA: the learning rate, logit-normal times, two
times 77 text tokens. Said by SD3: shift 3, 28 steps of Euler, guidance 7.
Ours, because neither says: every line marked so.
"""

from ml_collections import ConfigDict

from tp_jax.config import default
from tp_jax.messages.errors import UserError
from tp_jax.models.mmdit import SIZES
from tp_jax.thinking import ThinkingConfig
from tp_jax.thinking.cost import equal_rank

WORDS = ("one-layer", "m5t5", "no-mod", "lora", "512", "debug")


def get_config(argument: str = "") -> ConfigDict:
    config = default(model="mmdit", diffusion="flow")

    # What tp_jax.prepare turns into latents and text, and where they go.
    config.prepare.update(source="coco", dir="data/coco", split="train2017")  # ours
    config.prepare.num = 1_000
    config.prepare.captions = 1  # ours: of the five or more that each image has
    config.prepare.update(records_per_shard=100, batch_size=16)  # ours
    config.autoencoder.path = "checkpoints/sd3-medium-vae"  # ours
    config.text.update(encoder="sd3", t5_tokens=77)
    config.text.path = "stable-diffusion-3-medium-diffusers"  # ours
    config.data.source = "latents"
    config.data.dir = "data/sd3-coco-1024"  # ours
    config.data.workers = 0  # ours: nothing is decoded, and encoded text is large to pass on

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
        samples=8,  # ours
    )
    config.optimizer.update(learning_rate=1e-4, clip_norm=1.0)
    config.checkpoint.update(every_steps=500, keep=2)  # ours
    config.sampling.update(sampler="euler", steps=28, guidance_scale=7.0)
    return change(config, argument.split(",") if argument else [])


def change(config: ConfigDict, words: list[str]) -> ConfigDict:
    """The config as the words of the argument change it."""
    for word in words:
        if word not in WORDS:
            raise UserError(f"--config: unknown argument {word!r}: choose of {', '.join(WORDS)}")
    thinking = config.model.thinking
    if "one-layer" in words:
        thinking.layers = (12,)  # ours
    if "m5t5" in words:
        thinking.update(experts=5, latent_steps=5)
    if "no-mod" in words:
        thinking.modulate = False
    if "512" in words:
        config.model.image_size = 64
        config.data.dir = "data/sd3-coco-512"  # ours
    if "debug" in words:
        shrink(config)
    if "lora" in words:
        rank = equal_rank(config.model.width, ThinkingConfig(**thinking.to_dict()))
        thinking.update(experts=1, latent_steps=1, gate="first", rank=rank)
    return config


def shrink(config: ConfigDict) -> None:
    """Few and narrow blocks, on synthetic data; every number is ours."""
    config.data.update(source="synthetic", workers=0)
    config.autoencoder.path = config.init.base = ""
    config.model.update(
        image_size=config.model.image_size // 8,
        depth=4,
        width=64,
        heads=4,
        text_tokens=8,
        text_width=32,
        pooled_width=16,
        remat="none",
    )
    layers = (2,) if len(config.model.thinking.layers) == 1 else (1, 2)
    config.model.thinking.update(layers=layers, rank=8, gate_width=16)
    config.train.update(
        trainable="all", steps=20, batch_size=16, log_every=5, sample_every=20, samples=4
    )
    config.checkpoint.every_steps = 10
    config.sampling.steps = 4

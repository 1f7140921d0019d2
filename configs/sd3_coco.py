"""Stable Diffusion 3 medium at 1024×1024, frozen, with thinking in blocks 4, 8 and 12.

    configs/sd3_coco.py              train only the thinking layers, on the frozen published base
    configs/sd3_coco.py:one-layer    thinking in block 12 only
    configs/sd3_coco.py:m5t5         five experts and five latent steps
    configs/sd3_coco.py:no-mod       no adaLN scale and shift (Mod) inside the recursion
    configs/sd3_coco.py:lora         plain LoRA with as many parameters, in the same blocks
    configs/sd3_coco.py:512          512×512 pixels
    configs/sd3_coco.py:debug        a tiny model on random data; takes a minute on a laptop
    configs/sd3_coco.py:m5t5,lora    variants combine; this LoRA has as many parameters as m5t5

From the paper (arXiv 2604.25299): the base, layers 4, 8 and 12, two experts, two latent steps,
rank 128, 1,000 samples of MSCOCO, and the variants one-layer, m5t5, no-mod and lora, which it
compares. It doesn't say whether it counts layers from 0, as we do, nor which layer one-layer is.
From diffusers' script for LoRA fine-tuning of SD3: the learning rate, logit-normal timesteps, and
77 text tokens each for CLIP and T5. From SD3: shift 3, 28 Euler steps, guidance scale 7.
Lines marked "ours" are our choices, because none of these gives a value.
"""

from ml_collections import ConfigDict

from tp_jax.config import default, parse_variants
from tp_jax.models.mmdit_config import SIZES
from tp_jax.thinking import ThinkingConfig
from tp_jax.thinking.parameter_count import matched_lora_rank

VARIANTS = ("one-layer", "m5t5", "no-mod", "lora", "512", "debug")


def get_config(argument: str = "") -> ConfigDict:
    config = default(model="mmdit", diffusion="flow")

    # The images and captions that tp_jax.prepare encodes, and the folder that it writes to.
    config.prepare.update(source="coco", dir="data/coco", split="train2017")  # ours
    config.prepare.num = 1_000
    config.prepare.captions = 1  # ours: the first of the five or more of each image
    config.prepare.update(records_per_shard=100, batch_size=16)  # ours
    config.autoencoder.path = "checkpoints/sd3-medium-vae"  # ours
    config.text.update(encoder="sd3", t5_tokens=77)
    config.text.path = "stable-diffusion-3-medium-diffusers"  # ours
    config.data.source = "latents"
    config.data.dir = "data/sd3-coco-1024"  # ours
    config.data.workers = 0  # ours: nothing to decode, and large text arrays to send

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
    return apply_variants(config, parse_variants(argument, VARIANTS))


def apply_variants(config: ConfigDict, variants: list[str]) -> ConfigDict:
    """Return the config with the given variants applied."""
    thinking = config.model.thinking
    if "one-layer" in variants:
        thinking.layers = (12,)  # ours
    if "m5t5" in variants:
        thinking.update(experts=5, latent_steps=5)
    if "no-mod" in variants:
        thinking.modulate = False
    if "512" in variants:
        config.model.image_size = 64
        config.data.dir = "data/sd3-coco-512"  # ours
    if "debug" in variants:
        shrink(config)
    if "lora" in variants:
        rank = matched_lora_rank(config.model.width, ThinkingConfig(**thinking.to_dict()))
        thinking.update(experts=1, latent_steps=1, gate="first", rank=rank)
    return config


def shrink(config: ConfigDict) -> None:
    """Shrink the model and train it on synthetic data; every number is ours."""
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

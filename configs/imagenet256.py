"""ImageNet 256×256, class-conditional: DiT-XL/2 on 32×32×4 latents, with thinking in block 12.

    configs/imagenet256.py            train only the thinking layer, on the frozen published base
    configs/imagenet256.py:scratch    train all parameters from random weights, by DiT's recipe
    configs/imagenet256.py:sit        the same on the published SiT-XL/2, a flow
    configs/imagenet256.py:debug      a tiny model on random latents; takes a minute on a laptop
    configs/imagenet256.py:scratch,debug

From the paper (arXiv 2604.25299): the base, DiT-XL/2; rank 128; experts and latent steps from
{1, 2, 5}. The paper reports an FID of 2.27, against 2.34 for its own run of DiT.
From DiT (arXiv 2212.09748): the diffusion, the optimizer, the batch of 256, EMA 0.9999, 10 % of
the labels dropped, flips, 250 DDPM steps, guidance 1.5 on three channels, 7 M steps from scratch.
Lines marked "ours" are our choices, because the paper gives no value.
"""

from ml_collections import ConfigDict

from tp_jax.config import default, parse_variants
from tp_jax.models.dit_config import SIZES


def get_config(argument: str = "") -> ConfigDict:
    config = default(model="dit", diffusion="gaussian")

    # The images that tp_jax.prepare encodes, and the folder that it writes the latents to.
    config.prepare.update(source="tfds/imagenet2012", dir="", split="train")
    config.autoencoder.path = "checkpoints/sd-vae-ft-ema"  # ours
    config.data.source = "latents"
    config.data.dir = "data/imagenet256"  # ours
    config.data.flip = True
    config.data.workers = 8  # ours

    config.model.update(image_size=32, channels=4, num_classes=1000, patch=2, **SIZES["XL"])
    config.model.dtype = "bfloat16"  # ours
    config.model.remat = "full"  # ours: 0.9 GiB of activations per v5e chip, not 13.5
    config.model.thinking.update(
        layers=(12,),  # 0-based; the paper doesn't say whether its layer 12 counts from 0
        experts=2,
        latent_steps=2,
        rank=128,
        temperature=5.0,
        gate_width=128,  # ours
    )

    config.init.base = "checkpoints/dit-xl-2-256"  # ours
    config.train.update(
        trainable="thinking",
        steps=100_000,  # ours
        batch_size=256,  # ours for fine-tuning, DiT's from scratch
        ema_decay=0.9999,
        condition_dropout=0.1,
        sample_every=10_000,  # ours
        samples=64,  # ours
    )
    config.optimizer.update(learning_rate=1e-4, weight_decay=0.0)  # ours for fine-tuning
    config.checkpoint.update(every_steps=2_500, keep=2, keep_every_steps=25_000)  # ours
    config.sampling.update(
        sampler="ddpm", steps=250, guidance_scale=1.5, guidance_channels=3, spacing="even"
    )
    return apply_variants(config, argument)


def apply_variants(config: ConfigDict, argument: str) -> ConfigDict:
    """Return the config with the comma-separated variants of `argument` applied."""
    variants = parse_variants(argument, ("scratch", "sit", "debug"))
    if "sit" in variants:
        flow = default(model="dit", diffusion="flow")
        config.diffusion = flow.diffusion
        config.diffusion.shift = 1.0
        config.model.time_input = "data_share"
        config.init.base = "checkpoints/sit-xl-2-256"  # ours
        config.sampling.update(sampler="heun", steps=50, guidance_channels=0)  # ours
    if "scratch" in variants:
        config.init.base = ""
        config.train.update(trainable="all", steps=7_000_000)
    if "debug" in variants:
        config.data.update(source="synthetic", workers=0)
        config.autoencoder.path = config.init.base = ""
        config.model.update(
            image_size=config.model.image_size // 4, depth=4, width=64, heads=4, remat="none"
        )
        config.model.thinking.update(layers=(2,), rank=8, gate_width=16)
        config.train.update(
            trainable="all", steps=20, batch_size=16, log_every=5, sample_every=20, samples=4
        )
        config.checkpoint.update(every_steps=10, keep_every_steps=0)
        config.sampling.steps = 10
    return config

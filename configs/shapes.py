"""Shapes: text to image on small pictures of shapes, which a program renders and checks.

    configs/shapes.py                 the base: a small MMDiT on 32×32 pixels
    configs/shapes.py:think           thinking on the frozen base: two experts, two latent steps
    configs/shapes.py:lora            plain LoRA with as many parameters, on the same base
    configs/shapes.py:hard            the base on the hard scenes, of which it learns little
    configs/shapes.py:large           a larger base on the hard scenes, for a GPU
    configs/shapes.py:think,hard      variants combine

The easy scenes have six colours instead of seven, plain backgrounds, and objects of nearly the
same size in the four quarters of the picture. Every number is ours. think and lora start from
the base: pass --config.init.base=WORKDIR, the workdir of the base. Training the base takes about
ten minutes of one CPU core.
"""

from ml_collections import ConfigDict

from tp_jax.config import default, parse_variants
from tp_jax.text.words import WordEncoder
from tp_jax.thinking import ThinkingConfig
from tp_jax.thinking.parameter_count import matched_lora_rank
from tp_jax.worlds.shapes.scenes import MAX_WORDS, WORDS


def get_config(argument: str = "") -> ConfigDict:
    config = default(model="mmdit", diffusion="flow")
    config.data.source = "shapes"
    config.text.encoder = "shapes"
    space = WordEncoder(WORDS, MAX_WORDS).space

    config.shapes.difficulty = "easy"
    config.model.update(
        image_size=32,
        channels=3,
        patch=8,
        depth=4,
        width=128,
        heads=4,
        text_tokens=space.tokens,
        text_width=space.width,
        pooled_width=space.pooled_width,
        max_grid=4,
        # Coordinates 256 apart: with 0 to 3, 93 % of the energy of the position embedding is the
        # same for all 16 tokens, and the model learns the parts of objects, but not where they go.
        base_grid=1024,
        qk_norm=True,
    )
    config.model.thinking.layers = ()
    # A patch has more values than a token's width. The shift moves training and sampling to high
    # noise, where the layout is decided: over the pixels of an object, the noise averages out.
    config.diffusion.update(prediction="data", shift=4.0)

    config.train.update(
        steps=6_000, batch_size=32, ema_decay=0.99, log_every=200, sample_every=2_000, samples=64
    )
    config.optimizer.update(
        learning_rate=2e-3, schedule="cosine", warmup_steps=100, clip_norm=1.0, b2=0.99
    )
    config.checkpoint.every_steps = 1_000
    config.sampling.update(sampler="euler", steps=30, guidance_scale=2.0)
    return apply_variants(config, argument)


def apply_variants(config: ConfigDict, argument: str) -> ConfigDict:
    """Return the config with the comma-separated variants of `argument` applied."""
    variants = parse_variants(argument, ("think", "lora", "hard", "large"))
    if {"hard", "large"} & set(variants):
        config.shapes.difficulty = "hard"
    if "hard" in variants:
        # Diffuse means of 4×4 pixels, 16×16 per picture, so that layouts are learned in minutes.
        config.autoencoder.pool = 4
        config.model.update(image_size=16, patch=4, base_grid=4)
        config.diffusion.update(prediction="velocity", shift=1.0)
        config.train.steps = 8_000
    if "large" in variants:
        config.autoencoder.pool = 0
        config.model.update(depth=12, width=384, heads=6, image_size=64, patch=4)
        config.model.update(max_grid=16, base_grid=16)
        config.diffusion.update(prediction="data", shift=3.0)
        config.model.dtype = "bfloat16"
        config.train.update(steps=50_000, batch_size=256, ema_decay=0.9995)
        config.optimizer.update(learning_rate=5e-4, warmup_steps=1_000)
        config.checkpoint.every_steps = 5_000
    if {"think", "lora"} & set(variants):
        depth, width = config.model.depth, config.model.width
        # The same fractions of the depth as blocks 4, 8 and 12 of Stable Diffusion 3's 24.
        layers = sorted({depth // 6, depth // 3, depth // 2})
        thinking = dict(layers=tuple(layers), experts=2, latent_steps=2, rank=32, gate_width=32)
        if "lora" in variants:
            rank = matched_lora_rank(width, ThinkingConfig(**thinking))
            thinking |= dict(experts=1, latent_steps=1, gate="first", rank=rank)
        config.model.thinking.update(**thinking)
        config.init.base = "runs/shapes"
        config.train.update(trainable="thinking", steps=config.train.steps // 4)
        config.optimizer.learning_rate = config.optimizer.learning_rate / 2
    return config

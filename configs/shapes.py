"""Shapes: text to image anywhere, in pictures whose contents a program can check.

    configs/shapes.py                 the base: a small MMDiT in pixel space, from random weights
    configs/shapes.py:think           thinking is trained on it, frozen: two experts, two steps
    configs/shapes.py:lora            plain LoRA with as many parameters, on the same base
    configs/shapes.py:large           a larger base for a GPU; with think and lora too

Every number is ours. The base and one fine-tuning take under 25 minutes on two CPU cores. A
fine-tuning wants the base: --config.init.base=WORKDIR of the base.
"""

from ml_collections import ConfigDict

from tp_jax.config import default
from tp_jax.shapes.scenes import LONGEST, WORDS
from tp_jax.text.words import WordEncoder


def get_config(argument: str = "") -> ConfigDict:
    config = default(model="mmdit", diffusion="flow")
    config.data.source = "shapes"
    config.text.encoder = "shapes"
    space = WordEncoder(WORDS, LONGEST).space

    config.model.update(
        image_size=64,
        channels=3,
        patch=16,
        depth=4,
        width=192,
        heads=4,
        text_tokens=space.tokens,
        text_width=space.width,
        pooled_width=space.pooled_width,
        max_grid=4,
        base_grid=4,
        qk_norm=True,
    )
    config.model.thinking.layers = ()
    # A patch holds more numbers than a token.
    config.diffusion.update(prediction="data", shift=3.0)

    config.train.update(
        steps=3_000, batch_size=32, ema_decay=0.99, log_every=50, sample_every=500, samples=64
    )
    config.optimizer.update(
        learning_rate=2e-3, schedule="cosine", warmup_steps=100, clip_norm=1.0, b2=0.99
    )
    config.checkpoint.every_steps = 500
    config.sampling.update(sampler="heun", steps=20, guidance_scale=3.0)
    return config

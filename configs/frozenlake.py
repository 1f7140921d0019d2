"""FrozenLake: from one frame, a DiT draws the next ones; each of its latent steps is one move.

    configs/frozenlake.py               recursive sparse thinking: two experts, four latent steps
    configs/frozenlake.py:single        the same parameters without recursion: one move a drawing
    configs/frozenlake.py:random        the same, but experts are taken at random
    configs/frozenlake.py:large         larger maps and model, for a GPU; also with these

The paper doesn't say how it trained its agent: every number is ours. Useful in under 15 minutes on
two CPU cores.
"""

from ml_collections import ConfigDict

from tp_jax.config import default
from tp_jax.messages.errors import UserError


def get_config(argument: str = "") -> ConfigDict:
    config = default(model="dit", diffusion="flow")
    config.data.source = "frozenlake"
    # Maps of 3 and 5 cells a side are trained on, of 4 only tested; one token a cell.
    config.frozenlake.update(sizes=(3, 5), unseen_sizes=(4,), tile=8)
    config.model.update(
        image_size=40,
        channels=3,
        patch=8,
        depth=4,
        width=96,
        heads=3,
        mlp_ratio=2,
        num_classes=0,
        frame="channels",
    )
    config.model.thinking.update(layers=(2,), experts=2, latent_steps=4, rank=32, gate_width=32)
    config.diffusion.update(prediction="data", shift=1.0, time_std=1.5)
    config.train.update(
        steps=4_000,
        batch_size=32,
        ema_decay=0.99,
        condition_dropout=0.0,
        log_every=200,
        sample_every=1_000,
        samples=64,
    )
    config.optimizer.update(
        learning_rate=2e-3, schedule="cosine", warmup_steps=100, clip_norm=1.0, b2=0.99
    )
    config.checkpoint.every_steps = 1_000
    config.sampling.update(sampler="euler", steps=8)
    return change(config, argument)


def change(config: ConfigDict, argument: str) -> ConfigDict:
    """The config as the arguments change it."""
    words = argument.split(",") if argument else []
    for word in words:
        if word not in ("single", "random", "large"):
            raise UserError(f"--config: unknown argument {word!r}: choose of single, random, large")
    if "large" in words:
        config.frozenlake.update(sizes=(3, 4, 5, 7), unseen_sizes=(6, 8))
        config.model.update(image_size=64, depth=12, width=384, heads=6, dtype="bfloat16")
        config.model.thinking.update(layers=(6,), rank=128, gate_width=128)
        config.train.update(steps=50_000, batch_size=256, ema_decay=0.9995)
        config.optimizer.update(learning_rate=3e-4, warmup_steps=1_000)
        config.checkpoint.every_steps = 5_000
    if "single" in words:
        config.model.thinking.latent_steps = 1
    if "random" in words:
        # The experts get the parameters that the gate had: 3·D·r of it, where each of two experts
        # has 6·D for a rank.
        rank = config.model.thinking.rank * 5 // 4
        config.model.thinking.update(gate="random", rank=rank)
    return config

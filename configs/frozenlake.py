"""FrozenLake: a DiT generates the next frames from one frame; each latent step is one move.

    configs/frozenlake.py               recursive sparse thinking: two experts, four latent steps
    configs/frozenlake.py:any           trained for 1 to 4 moves per sample, not only for 4
    configs/frozenlake.py:single        the same parameters without recursion: one move per sample
    configs/frozenlake.py:random        random experts, with as many parameters
    configs/frozenlake.py:large         larger maps and a larger model, for a GPU
    configs/frozenlake.py:single,large  variants combine

The paper doesn't say how it trained its agent, so every number is ours. Training takes about 25
minutes on one CPU core.

The frames show an agent on a shortest path. If there are several, the data always have the same
one, so that the frames are a function of the map and of the agent's cell: the model only has to
find the way. Every update trains all four moves; with the variant `any`, which draws the number of
moves (`latent_steps_range`), only every fourth update trains the fourth move. Most of
training is at high noise (`time_mean`), because at low noise the noisy frame already shows where
the walk ends. All blocks but the last come before the latent steps.
"""

from ml_collections import ConfigDict

from tp_jax.config import default, parse_variants


def get_config(argument: str = "") -> ConfigDict:
    config = default(model="dit", diffusion="flow")
    config.data.source = "frozenlake"
    # Train on maps of 3×3 and 5×5 cells and test on 4×4 too. Each cell is one token.
    config.frozenlake.update(sizes=(3, 5), unseen_sizes=(4,), tile=8)
    config.model.update(
        image_size=40,
        channels=3,
        patch=8,
        depth=6,
        width=64,
        heads=4,
        mlp_ratio=2,
        num_classes=0,
        frame="channels",
    )
    config.model.thinking.update(
        layers=(5,),
        experts=2,
        latent_steps=4,
        rank=32,
        gate_width=32,
    )
    config.diffusion.update(prediction="data", shift=1.0, time_mean=1.5, time_std=1.5)
    config.train.update(
        steps=8_000,
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
    return apply_variants(config, argument)


def apply_variants(config: ConfigDict, argument: str) -> ConfigDict:
    """Return the config with the comma-separated variants of `argument` applied."""
    variants = parse_variants(argument, ("any", "single", "random", "large"))
    if "large" in variants:
        config.frozenlake.update(sizes=(3, 4, 5, 7), unseen_sizes=(6, 8))
        config.model.update(image_size=64, depth=12, width=384, heads=6, dtype="bfloat16")
        config.model.thinking.update(layers=(6,), rank=128, gate_width=128)
        config.train.update(steps=50_000, batch_size=256, ema_decay=0.9995)
        config.optimizer.update(learning_rate=3e-4, warmup_steps=1_000)
        config.checkpoint.every_steps = 5_000
    if "any" in variants:
        config.model.thinking.latent_steps_range = (1, config.model.thinking.latent_steps)
    if "single" in variants:
        config.model.thinking.latent_steps = 1
    if "random" in variants:
        # A larger rank replaces the parameters of the learned gate: it has 3·D·r of them, and
        # each of the two experts has 6·D per rank.
        rank = config.model.thinking.rank * 5 // 4
        config.model.thinking.update(gate="random", rank=rank)
    return config

"""AdamW, schedules and clipping, from `config.optimizer`."""

import jax
import optax
from ml_collections import ConfigDict

from tp_jax.parallel.sharding import path_name

# Decayed are the matrices; norms, biases and embeddings of fixed things are not.
DECAYED = ("kernel", "embedding", "lora_a", "lora_b")


def make_schedule(config: ConfigDict, steps: int) -> optax.Schedule:
    """Learning rate by train_step: linear warm-up, then constant or a cosine to 0."""
    rate, warmup = config.learning_rate, config.warmup_steps
    if config.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(0.0 if warmup else rate, rate, warmup, steps)
    if warmup:
        return optax.join_schedules(
            [optax.linear_schedule(0.0, rate, warmup), optax.constant_schedule(rate)], [warmup]
        )
    return optax.constant_schedule(rate)


def make_optimizer(config: ConfigDict, steps: int) -> optax.GradientTransformation:
    """The optimizer; its state is float32 and mirrors the trained parameters."""

    def decay_mask(params):
        return jax.tree_util.tree_map_with_path(
            lambda path, _: path_name(path).rsplit("/", 1)[-1] in DECAYED, params
        )

    adamw = optax.adamw(
        make_schedule(config, steps),
        b1=config.b1,
        b2=config.b2,
        weight_decay=config.weight_decay,
        mask=decay_mask,
    )
    # In any case two links, so that a run can go on with another clip_norm.
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    return optax.chain(clip, adamw)

"""AdamW, schedules and clipping, from `config.optimizer`."""

import jax
import optax
from ml_collections import ConfigDict

from tp_jax.parallel.sharding import path_name

# Names of the parameters with weight decay: matrices and embedding tables, not norms or biases.
DECAYED = ("kernel", "embedding", "lora_a", "lora_b")


def make_schedule(config: ConfigDict, steps: int) -> optax.Schedule:
    """Return the learning-rate schedule: linear warm-up, then constant or a cosine decay to 0.

    Args:
      config: `config.optimizer`.
      steps: number of train steps of the run.
    """
    rate, warmup = config.learning_rate, config.warmup_steps
    if config.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(0.0 if warmup else rate, rate, warmup, steps)
    if warmup:
        return optax.join_schedules(
            [optax.linear_schedule(0.0, rate, warmup), optax.constant_schedule(rate)], [warmup]
        )
    return optax.constant_schedule(rate)


def make_optimizer(config: ConfigDict, steps: int) -> optax.GradientTransformation:
    """Make AdamW with weight decay on matrices only, and gradient clipping.

    Args:
      config: `config.optimizer`.
      steps: number of train steps of the run.
    """

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
    # Always chain two transforms, so that opt_state keeps its structure when clip_norm changes.
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    return optax.chain(clip, adamw)

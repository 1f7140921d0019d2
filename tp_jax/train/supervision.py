"""What the latent steps before the last are trained to decode to.

`models/latent_step_outputs.py` decodes an output from every latent step. The loss of the last one
is that of the objective. The earlier ones are trained in one of two ways:

- Deep supervision, with the weight `config.train.deep_supervision`: every latent step predicts the
  same target, as looped transformers need it to run for any number of steps.
- Frames, of models conditioned on a frame, with the weight `config.frozenlake.frames_weight`: each
  latent step stands for one move in the environment. With t latent steps, the last one predicts the
  frame after t moves, and the earlier ones decode to the frames before it.

Axes: B samples, T latent steps.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from tp_jax.models.config import TransformerConfig

# The objective's mean loss of an output [B, H, W, out_channels], for fixed data, noise and times.
LossOf = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Supervision:
    """How the outputs of the intermediate latent steps are trained.

    Attributes:
      name: of their loss among the metrics.
      weight: of their loss.
      target: (batch, latent_steps) -> [B, H, W, C], the data that the last latent step predicts.
      loss: (outputs [T-1, B, H, W, out_channels], batch, loss_of) -> their mean loss; 0 if T is 1.
    """

    name: str
    weight: float
    target: Callable[[Any, int], jax.Array]
    loss: Callable[[jax.Array, Any, LossOf], jax.Array]


def choose_supervision(model: TransformerConfig, config: ConfigDict) -> Supervision | None:
    """Return how the intermediate latent steps of a model are trained; None if they aren't."""
    if model.condition_kind == "frame":
        if model.thinking.latent_steps == 1:
            return None
        weight = config.frozenlake.frames_weight
        return Supervision("frames", weight, _frame_after_moves, _frames_loss)
    if not config.train.deep_supervision:
        return None
    weight = config.train.deep_supervision
    return Supervision("supervised_loss", weight, _same_target, _same_target_loss)


def _frame_after_moves(batch: Any, latent_steps: int) -> jax.Array:
    """Return a frame of the batch.

    The batch has "x" [B, H, W, C], the frame after T moves, and "frames" [B, T-1, H, W, C], the
    frames after 1 … T-1 moves.
    """
    frames = jnp.concatenate([batch["frames"], batch["x"][:, None]], axis=1)
    return frames[:, latent_steps - 1]


def _frames_loss(outputs: jax.Array, batch: Any, loss_of: LossOf) -> jax.Array:
    """Return the mean squared error of the frames after 1 … T-1 moves."""
    earlier = batch["frames"][:, : len(outputs)]
    error = jnp.square(outputs.swapaxes(0, 1) - earlier).sum()
    return error / max(earlier.size, 1)


def _same_target(batch: Any, latent_steps: int) -> jax.Array:
    return batch["x"]


def _same_target_loss(outputs: jax.Array, batch: Any, loss_of: LossOf) -> jax.Array:
    """Return the objective's loss, averaged over the latent steps."""
    return jax.vmap(loss_of)(outputs).mean() if len(outputs) else jnp.zeros(())

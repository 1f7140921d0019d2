"""Decodes an output of the model from every latent step.

The recursion itself is unchanged. For an intermediate latent step t, the thinking layers stop after
t latent steps: the attention of each of their blocks returns ã^t - x̃, which has no part of the base
projection W. The rest of the model is as always: output projection and MLP of the thinking blocks,
the other blocks and the final layer. The last latent step decodes to the prediction of the model.

With one thinking layer, ã^t is that of the prediction itself. With several, ã^t of a later layer is
computed from the tokens that the earlier layers give when they stop after t latent steps.

T latent steps, B samples, N tokens, D width.
"""

import dataclasses
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from tp_jax.thinking.layer import RoutingStats, Stopped, ThinkingOptions


def decode_latent_steps(
    model: nn.Module,
    params: Any,
    x: jax.Array,
    timestep: jax.Array,
    condition: dict[str, jax.Array],
    options: ThinkingOptions = ThinkingOptions(),
) -> tuple[jax.Array, dict[int, RoutingStats]]:
    """Decode every latent step of a model with thinking layers.

    The blocks before the first thinking block run once for the prediction, and once more for all
    intermediate latent steps together. The blocks after it run once for each latent step.

    Args:
      model: a model of `MODELS`.
      params: {"base", "thinking"}.
      x, timestep, condition, options: arguments of the model.

    Returns:
      [T, B, H, W, out_channels] float32, of which the last is the model's prediction, and
      {block index: statistics of its thinking layer}.
    """

    def apply(options: ThinkingOptions) -> tuple[jax.Array, dict[int, RoutingStats]]:
        outputs = model.apply({"params": params}, x, timestep, condition, options)
        return cast(tuple[jax.Array, dict[int, RoutingStats]], outputs)

    last, routing_stats = apply(dataclasses.replace(options, trace=True))
    first = routing_stats[min(routing_stats)]
    # ã⁰ … ã^{T-1} with ã⁰ = x̃; not None, because of trace=True.
    tokens = cast(jax.Array, first.tokens)
    if len(tokens) == 1:
        return last[None], routing_stats

    def decode(stopped: Stopped) -> jax.Array:
        return apply(dataclasses.replace(options, trace=False, stopped=stopped))[0]

    steps = jnp.arange(1, len(tokens))
    intermediate = jax.vmap(decode)(Stopped(steps, tokens[1:] - tokens[0], first.text))
    return jnp.concatenate([intermediate, last[None]]), routing_stats

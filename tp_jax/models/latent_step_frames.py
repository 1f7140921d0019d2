"""Decodes an image from every latent step of a thinking layer, as for FrozenLake.

The recursion itself is unchanged. For an intermediate latent step t, ã^t - x̃ is the attention
output of that step. It is decoded by the rest of the model: the output projection and MLP of the
thinking block, the later blocks and the final layer. The last latent step decodes to the
prediction of the model.

T latent steps, B samples, N tokens, D width.
"""

import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import struct

from tp_jax.models.dit import DiT, DiTBase
from tp_jax.thinking.layer import AttentionInputs, RoutingStats, ThinkingOptions


@struct.dataclass
class _GivenAttention:
    """Replaces the attention of a block by a given attention output.

    Attributes:
      attended: ã^t - x̃ [B, N, D].
    """

    attended: jax.Array

    def __call__(self, block: AttentionInputs) -> tuple[jax.Array, None, None]:
        """Return the given attention output, without text and statistics."""
        return self.attended, None, None


def decode_latent_steps(
    model: DiT,
    params: Any,
    x: jax.Array,
    timestep: jax.Array,
    condition: dict[str, jax.Array],
    options: ThinkingOptions = ThinkingOptions(),
) -> tuple[jax.Array, dict[int, RoutingStats]]:
    """Decode every latent step of the only thinking layer of a model.

    Args:
      model: a DiT for which `check_decodable` passes.
      params: {"base", "thinking"}.
      x, timestep, condition, options: arguments of `DiT`.

    Returns:
      [T, B, H, W, out_channels] float32, of which the last is the model's prediction, and
      {block index: statistics of its thinking layer}.
    """
    (layer,) = model.config.thinking.layers
    traced = dataclasses.replace(options, trace=True)
    outputs = model.apply({"params": params}, x, timestep, condition, traced)
    last, routing_stats = cast(tuple[jax.Array, dict[int, RoutingStats]], outputs)
    # ã⁰ … ã^{T-1} with ã⁰ = x̃; not None, because of trace=True.
    tokens = cast(jax.Array, routing_stats[layer].tokens)
    if len(tokens) == 1:
        return last[None], routing_stats

    def decode(attended: jax.Array) -> jax.Array:
        base, variables = DiTBase(model.config), {"params": params["base"]}
        label, frame = condition["label"], condition["frame"]
        replaced = {layer: _GivenAttention(attended)}
        return base.apply(variables, x, timestep, label, replaced, frame)[0]

    intermediate = jax.vmap(decode)(tokens[1:] - tokens[0])
    return jnp.concatenate([intermediate, last[None]]), routing_stats

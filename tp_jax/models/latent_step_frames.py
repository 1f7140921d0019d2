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
from tp_jax.thinking.layer import Conditioning, ThinkingOptions, Thought
from tp_jax.thinking.recursion import Attend, Project


@struct.dataclass
class _Ended:
    """Replaces the attention of a block by a given attention output.

    Attributes:
      attended: ã^t - x̃ [B, N, D].
    """

    attended: jax.Array

    def __call__(
        self,
        vision: jax.Array,
        scale: jax.Array,
        shift: jax.Array,
        y: Conditioning,
        base: Project,
        attend: Attend,
    ) -> tuple[jax.Array, None, None]:
        """Return the given attention output, without text and statistics."""
        return self.attended, None, None


def decode_latent_steps(
    model: DiT,
    params: Any,
    x: jax.Array,
    timestep: jax.Array,
    condition: dict[str, jax.Array],
    options: ThinkingOptions = ThinkingOptions(),
) -> tuple[jax.Array, dict[int, Thought]]:
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
    found = model.apply({"params": params}, x, timestep, condition, traced)
    last, thoughts = cast(tuple[jax.Array, dict[int, Thought]], found)
    # ã⁰ … ã^{T-1} with ã⁰ = x̃; not None, because of trace=True.
    tokens = cast(jax.Array, thoughts[layer].tokens)
    if len(tokens) == 1:
        return last[None], thoughts

    def read(attended: jax.Array) -> jax.Array:
        base, variables = DiTBase(model.config), {"params": params["base"]}
        label, frame = condition["label"], condition["frame"]
        ended = {layer: _Ended(attended)}
        return base.apply(variables, x, timestep, label, ended, frame)[0]

    before = jax.vmap(read)(tokens[1:] - tokens[0])
    return jnp.concatenate([before, last[None]]), thoughts

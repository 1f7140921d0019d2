"""Frames decoded from the latent steps of a thinking layer, as on FrozenLake.

The recursion itself stays as it is. What it leaves behind at latent step t, ã^t, is read: the
block's own projection and MLP, the blocks after it and the head make a frame of ã^t - x̃, which is
what attention gave, without the base's part. The last latent step is what the model draws.

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
    """Gives a block, in place of its attention, what its thinking layer attended to.

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
        """As `InPlaceOfAttention`."""
        return self.attended, None, None


def decode_latent_steps(
    model: DiT,
    params: Any,
    x: jax.Array,
    timestep: jax.Array,
    condition: dict[str, jax.Array],
    options: ThinkingOptions = ThinkingOptions(),
) -> tuple[jax.Array, dict[int, Thought]]:
    """What every latent step of the one thinking layer decodes to.

    Args:
      model, x, timestep, condition, options: as of `DiT`.
      params: {"base", "thinking"}.

    Returns:
      [T, B, H, W, out_channels] float32, the last being what the model predicts, and
      {block index: Thought}.
    """
    (layer,) = model.config.thinking.layers
    traced = dataclasses.replace(options, trace=True)
    found = model.apply({"params": params}, x, timestep, condition, traced)
    last, thoughts = cast(tuple[jax.Array, dict[int, Thought]], found)
    # ã⁰ … ã^{T-1}, and ã⁰ = x̃; traced, so that they are there.
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

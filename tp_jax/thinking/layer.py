"""Flax modules that hold the thinking parameters, apart from the base's."""

# jax and flax leave parts of what their functions take and return without a type.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from tp_jax.thinking.config import ThinkingConfig
from tp_jax.thinking.experts import init_experts
from tp_jax.thinking.gate import RoutingNoise, draw_routing, init_gate
from tp_jax.thinking.recursion import Attend, Conditioning, Project, Thought, think

__all__ = [
    "Conditioning",
    "InPlaceOfAttention",
    "Thinking",
    "ThinkingLayer",
    "ThinkingOptions",
    "Thought",
    "init_thinking_layer",
]


@struct.dataclass
class ThinkingOptions:
    """What a caller may choose each time a model runs.

    Attributes:
      noise: None samples deterministically.
      latent_steps: overrides the config's T; parameters don't change.
      trace: return every latent step's probabilities, experts and tokens.
    """

    noise: RoutingNoise | None = None
    latent_steps: int | None = struct.field(pytree_node=False, default=None)
    trace: bool = struct.field(pytree_node=False, default=False)


def init_thinking_layer(key: jax.Array, config: ThinkingConfig, width: int) -> dict[str, Any]:
    """Parameters of one thinking layer for tokens of this width, all float32."""
    gate_key, experts_key = jax.random.split(key)
    params = {"norm": {"scale": jnp.ones(width), "bias": jnp.zeros(width)}}
    # Two names, because experts per latent step have one more axis to shard.
    experts = "experts" if config.share_across_steps else "step_experts"
    params[experts] = init_experts(experts_key, config, width)
    if config.gate == "learned":
        params["gate"] = init_gate(gate_key, config, width)
    return params


class InPlaceOfAttention(Protocol):
    """What a block calls in place of its attention; a pytree, so that a block can be remat'ed."""

    def __call__(
        self,
        vision: jax.Array,
        scale: jax.Array,
        shift: jax.Array,
        y: Conditioning,
        base: Project,
        attend: Attend,
    ) -> tuple[jax.Array, jax.Array | None, Thought | None]:
        """As `recursion.think`."""
        ...


@struct.dataclass
class ThinkingLayer:
    """One thinking layer of a model that runs, called in place of its block's attention.

    Attributes:
      params: of `init_thinking_layer`.
      draws: of `gate.draw_routing`, for every latent step; None samples deterministically.
      config, latent_steps, trace: as of `recursion.think`.
    """

    params: dict[str, Any]
    draws: jax.Array | None
    config: ThinkingConfig = struct.field(pytree_node=False)
    latent_steps: int | None = struct.field(pytree_node=False, default=None)
    trace: bool = struct.field(pytree_node=False, default=False)

    def __call__(
        self,
        vision: jax.Array,
        scale: jax.Array,
        shift: jax.Array,
        y: Conditioning,
        base: Project,
        attend: Attend,
    ) -> tuple[jax.Array, jax.Array | None, Thought]:
        """As `recursion.think`."""
        return think(
            self.params,
            vision,
            scale,
            shift,
            y,
            base,
            attend,
            config=self.config,
            draws=self.draws,
            latent_steps=self.latent_steps,
            trace=self.trace,
        )


class Thinking(nn.Module):
    """All thinking layers of a model: parameters `layer_<i>`, one entry per thinking block."""

    config: ThinkingConfig
    width: int

    @nn.compact
    def __call__(self, options: ThinkingOptions, tokens: int) -> dict[int, ThinkingLayer]:
        """{block index: its thinking layer}, for `tokens` vision tokens."""
        steps = options.latent_steps or self.config.latent_steps
        layers: dict[int, ThinkingLayer] = {}
        for layer in sorted(self.config.layers):
            params = self.param(f"layer_{layer}", init_thinking_layer, self.config, self.width)
            # Drawn here, so that rematerialisation doesn't draw twice.
            draws = draw_routing(options.noise, self.config, layer, steps, tokens)
            layers[layer] = ThinkingLayer(
                params, draws, self.config, options.latent_steps, options.trace
            )
        return layers

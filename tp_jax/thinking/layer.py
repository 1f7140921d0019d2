"""Flax modules that hold the thinking parameters, apart from the base's."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from tp_jax.thinking.config import ThinkingConfig
from tp_jax.thinking.experts import init_experts
from tp_jax.thinking.gate import RoutingNoise, draw_routing, init_gate
from tp_jax.thinking.recursion import Conditioning, Thought, think

__all__ = ["Conditioning", "Thinking", "ThinkingOptions", "Thought", "init_thinking_layer"]


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


class Thinking(nn.Module):
    """All thinking layers of a model: parameters `layer_<i>`, one entry per thinking block."""

    config: ThinkingConfig
    width: int

    @nn.compact
    def __call__(self, options: ThinkingOptions, tokens: int) -> dict[int, tuple[Callable, Any]]:
        """The layers for `tokens` vision tokens.

        Returns:
          {block index: (pure function of (inputs, …) as `recursion.think`, inputs)}; the inputs
          are the layer's parameters and what its gate draws.
        """
        steps = options.latent_steps or self.config.latent_steps
        layers = {}
        for layer in sorted(self.config.layers):
            params = self.param(f"layer_{layer}", init_thinking_layer, self.config, self.width)
            # Drawn here, so that rematerialisation doesn't draw twice.
            draws = draw_routing(options.noise, self.config, layer, steps, tokens)
            run = functools.partial(
                _think, config=self.config, latent_steps=options.latent_steps, trace=options.trace
            )
            layers[layer] = run, (params, draws)
        return layers


def _think(inputs, *args, **options):
    params, draws = inputs
    return think(params, *args, draws=draws, **options)

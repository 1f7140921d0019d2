"""Flax modules that hold the parameters of the thinking layers, separate from the base model."""

# jax and flax leave parts of what their functions take and return without a type.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import dataclasses
from typing import Any, Protocol, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from tp_jax.thinking.config import ThinkingConfig
from tp_jax.thinking.experts import init_experts
from tp_jax.thinking.gate import GateRandomness, draw_routing, init_gate
from tp_jax.thinking.halting import draw_halting, init_halt
from tp_jax.thinking.recursion import AttentionInputs, Conditioning, RoutingStats, think

__all__ = [
    "AttentionInputs",
    "AttentionReplacement",
    "Conditioning",
    "RoutingStats",
    "Stopped",
    "Thinking",
    "ThinkingLayer",
    "ThinkingOptions",
    "init_thinking_layer",
]


@struct.dataclass
class Stopped:
    """Ends all thinking layers of a forward pass after an intermediate latent step t.

    The result of each layer is then ã^t - x̃, attention without the base projection. That of the
    first layer is given, because the layers before it don't change with t.

    Attributes:
      latent_step: int32 scalar, t in 1 … T-1.
      vision: [B, N, D] ã^t - x̃ of the first thinking layer.
      text: [B, L, D] the text output of its attention at latent step t; None without text.
    """

    latent_step: jax.Array
    vision: jax.Array
    text: jax.Array | None = None


@struct.dataclass
class ThinkingOptions:
    """Options of one forward pass, which need no other parameters.

    Attributes:
      randomness: for the gate's random numbers; None for deterministic routing.
      latent_steps: overrides `config.model.thinking.latent_steps`.
      trace: return the probabilities, experts and tokens of every latent step.
      routes: {block: [T, B, N] int32}, the experts that these blocks use instead of their gate's
        choice; None routes every block by its gate.
      stopped: ends the thinking layers after an intermediate latent step; None runs all steps.
      halting_epsilon: halts tokens by "threshold" with this ε, whatever `config.halting` is; None
        follows the config. Training ignores it, as it does "threshold".
    """

    randomness: GateRandomness | None = None
    latent_steps: int | None = struct.field(pytree_node=False, default=None)
    trace: bool = struct.field(pytree_node=False, default=False)
    routes: dict[int, jax.Array] | None = None
    stopped: Stopped | None = None
    halting_epsilon: float | None = struct.field(pytree_node=False, default=None)

    def halting_of(self, config: ThinkingConfig) -> ThinkingConfig:
        """Return the config with the halting of this forward pass."""
        if self.halting_epsilon is not None:
            config = dataclasses.replace(
                config, halting="threshold", halting_epsilon=self.halting_epsilon
            )
        if config.halting == "threshold" and self.randomness and self.randomness.train:
            return dataclasses.replace(config, halting="none")
        return config


def init_thinking_layer(key: jax.Array, config: ThinkingConfig, width: int) -> dict[str, Any]:
    """Return initial parameters of one thinking layer, all float32.

    Args:
      key: a PRNG key.
      config: sizes and choices.
      width: D.

    Returns:
      "norm" (LayerNorm), "experts" or, with experts per latent step, "step_experts", and "gate" if
      the gate is learned, and "halt" if `config.halting` is "ponder".
    """
    gate_key, experts_key = jax.random.split(key)
    params = {"norm": {"scale": jnp.ones(width), "bias": jnp.zeros(width)}}
    # Experts per latent step have a leading axis T, and therefore sharding rules of their own.
    experts = "experts" if config.share_across_steps else "step_experts"
    params[experts] = init_experts(experts_key, config, width)
    if config.gate == "learned":
        params["gate"] = init_gate(gate_key, config, width)
    if config.halting == "ponder":
        params["halt"] = init_halt(config, width)
    return params


class AttentionReplacement(Protocol):
    """A function that a block calls instead of its own attention.

    Implementations are pytrees, so that they can be passed through `jax.checkpoint`.
    """

    def __call__(
        self, block: AttentionInputs
    ) -> tuple[jax.Array, jax.Array | None, RoutingStats | None]:
        """Return the vision and text outputs of attention, and statistics if there are any."""
        ...


@struct.dataclass
class ThinkingLayer:
    """One thinking layer with its parameters, which its block calls instead of attention.

    Attributes:
      params: from `init_thinking_layer`.
      draws, halting_draws, config, latent_steps, trace: arguments of `recursion.think`.
    """

    params: dict[str, Any]
    draws: jax.Array | None
    halting_draws: jax.Array | None
    config: ThinkingConfig = struct.field(pytree_node=False)
    latent_steps: int | None = struct.field(pytree_node=False, default=None)
    trace: bool = struct.field(pytree_node=False, default=False)

    def __call__(self, block: AttentionInputs) -> tuple[jax.Array, jax.Array | None, RoutingStats]:
        """Run `recursion.think`."""
        return think(
            self.params,
            block,
            config=self.config,
            draws=self.draws,
            halting_draws=self.halting_draws,
            latent_steps=self.latent_steps,
            trace=self.trace,
        )


@struct.dataclass
class _GivenAttention:
    """Replaces the attention of the first thinking block by `stopped.vision` and its text."""

    stopped: Stopped

    def __call__(self, block: AttentionInputs) -> tuple[jax.Array, jax.Array | None, None]:
        """Return the given attention output, without statistics."""
        return self.stopped.vision, self.stopped.text, None


@struct.dataclass
class _StoppedLayer:
    """A thinking layer that returns the attention of an intermediate latent step."""

    layer: ThinkingLayer
    latent_step: jax.Array

    def __call__(self, block: AttentionInputs) -> tuple[jax.Array, jax.Array | None, None]:
        """Return ã^t - x̃ and the text output of latent step t, without statistics."""
        # The last latent step isn't computed, because no result depends on it.
        _, _, stats = dataclasses.replace(self.layer, trace=True)(block)
        step, tokens = self.latent_step, cast("jax.Array", stats.tokens)
        text = None if stats.text is None else stats.text[step - 1]
        return tokens[step] - tokens[0], text, None


class Thinking(nn.Module):
    """All thinking layers of a model, with parameters `layer_<block index>`."""

    config: ThinkingConfig
    width: int

    @nn.compact
    def __call__(self, options: ThinkingOptions, tokens: int) -> dict[int, AttentionReplacement]:
        """Return {block index: thinking layer}.

        Args:
          options: of this forward pass.
          tokens: number N of vision tokens.
        """
        steps, routes = options.latent_steps or self.config.latent_steps, options.routes or {}
        layers: dict[int, AttentionReplacement] = {}
        stopped = options.stopped
        for layer in sorted(self.config.layers):
            params = self.param(f"layer_{layer}", init_thinking_layer, self.config, self.width)
            # Drawn outside the blocks, so that rematerialisation doesn't repeat it.
            config = options.halting_of(self.config)
            halting_draws = draw_halting(options.randomness, config, layer, steps, tokens)
            if layer in routes:
                # A random gate takes its experts from its draws, so a given route replaces them.
                draws, config = routes[layer], dataclasses.replace(config, gate="random")
            else:
                draws = draw_routing(options.randomness, config, layer, steps, tokens)
            thinking = ThinkingLayer(
                params, draws, halting_draws, config, options.latent_steps, options.trace
            )
            if stopped is None:
                layers[layer] = thinking
            elif not layers:
                layers[layer] = _GivenAttention(stopped)
            else:
                layers[layer] = _StoppedLayer(thinking, stopped.latent_step)
        return layers

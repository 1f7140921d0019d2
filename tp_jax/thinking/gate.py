"""The gate: which expert each token takes. All of it in float32.

B samples, N tokens, D width, H gate width, M experts.
"""

# jax and flax leave parts of what their functions take and return without a type.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import struct

from tp_jax.thinking.config import ThinkingConfig

# The gate is small and a wrong rounding sends a token elsewhere, so TPUs get full float32.
PRECISION = jax.lax.Precision.HIGHEST


@struct.dataclass
class RoutingNoise:
    """Where the gate's randomness comes from; a draw depends on nothing but what is named here.

    Attributes:
      key: a PRNG key: of (seed, "routing", train_step) in training, of (seed, sampler step) in
        sampling.
      sample: [B] int32, each sample's index in the global batch, or in the drawing.
      train: True adds Gumbel noise and the straight-through weight; False leaves a learned
        gate deterministic (only `gate="random"` then reads the key).
    """

    key: jax.Array
    sample: jax.Array
    train: bool = struct.field(pytree_node=False, default=True)


@struct.dataclass
class Route:
    """The gate's choice at one latent step.

    Attributes:
      probabilities: [B, N, M] float32.
      expert: [B, N] int32.
      weight: [B, N] float32, 1 in the forward pass.
    """

    probabilities: jax.Array
    expert: jax.Array
    weight: jax.Array


def init_gate(key: jax.Array, config: ThinkingConfig, width: int) -> dict[str, Any]:
    """Parameters of the learned gate: one projection [D, H] per input, then [H, M]."""
    hidden, lecun = config.gate_width, jax.nn.initializers.lecun_normal()
    shapes = dict.fromkeys(config.gate_inputs, (width, hidden))
    shapes["out"] = (hidden, config.experts)
    keys = jax.random.split(key, len(shapes))
    return {
        name: {"kernel": lecun(k, shape), "bias": jnp.zeros(shape[-1])}
        for k, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def _linear(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    x = x.astype(jnp.float32)
    return jnp.matmul(x, params["kernel"], precision=PRECISION) + params["bias"]


def gate_logits(
    params: dict[str, Any], normed: jax.Array, time: jax.Array, condition: jax.Array
) -> jax.Array:
    """Logits [B, N, M] from LN(ã) [B, N, D], time [B, D] and condition [B, D]."""
    inputs = {"token": normed, "time": time[:, None], "condition": condition[:, None]}
    terms = (_linear(params[name], x) for name, x in inputs.items() if name in params)
    hidden = cast("jax.Array", sum(terms))
    hidden = jnp.broadcast_to(hidden, (*normed.shape[:2], hidden.shape[-1]))
    return _linear(params["out"], jax.nn.silu(hidden))


def draw_routing(
    noise: RoutingNoise | None, config: ThinkingConfig, layer: int, steps: int, tokens: int
) -> jax.Array | None:
    """What one layer's gate draws for all its latent steps; None where it draws nothing.

    Args:
      noise: None draws nothing, as does train=False for a learned gate.
      layer: 0-based index of the block. Every array of draws, over tokens, is of (key, layer,
        latent_step, sample).
      steps, tokens: numbers T of latent steps and N of vision tokens.

    Returns:
      Gumbel(0, 1) noise [T, B, N, M] float32 for a learned gate in training, experts [T, B, N]
      int32 for a random gate.

    Raises:
      ValueError: `gate="random"` without noise.
    """
    if config.gate == "random" and noise is None:
        raise ValueError('gate="random" needs RoutingNoise, when sampling too')
    if noise is None or config.gate == "first" or (config.gate == "learned" and not noise.train):
        return None
    key, fold_in = jax.random.fold_in(noise.key, layer), jax.random.fold_in
    sample = noise.sample

    def of_samples(key: jax.Array) -> jax.Array:
        return jax.vmap(functools.partial(fold_in, key))(sample)

    step_keys = jax.vmap(functools.partial(fold_in, key))(jnp.arange(steps))
    keys = jax.vmap(of_samples)(step_keys)

    def draw(key: jax.Array) -> jax.Array:
        if config.gate == "random":
            return jax.random.randint(key, (tokens,), 0, config.experts)
        return jax.random.gumbel(key, (tokens, config.experts))

    return jax.vmap(jax.vmap(draw))(keys)


def choose_experts(
    params: dict[str, Any] | None,
    config: ThinkingConfig,
    normed: jax.Array,
    time: jax.Array,
    condition: jax.Array,
    draw: jax.Array | None,
) -> Route:
    """Routes every token at one latent step.

    Args:
      params: of `init_gate`; None unless `config.gate` is "learned".
      normed: [B, N, D] LN(ã).
      time, condition: [B, D] embeddings.
      draw: this latent step's part of `draw_routing`. None is sampling: no noise,
        `m = argmax logits`, `w = 1`.
    """
    tokens_shape, experts = normed.shape[:2], config.experts
    ones = jnp.ones(tokens_shape, jnp.float32)
    if config.gate == "first":
        expert = jnp.zeros(tokens_shape, jnp.int32)
        return Route(jax.nn.one_hot(expert, experts), expert, ones)
    if config.gate == "random":
        return Route(jnp.full((*tokens_shape, experts), 1 / experts), cast("jax.Array", draw), ones)

    logits = gate_logits(cast("dict[str, Any]", params), normed, time, condition)
    if draw is not None:
        logits += draw
    probabilities = jax.nn.softmax(logits / config.temperature)
    expert = jnp.argmax(logits, axis=-1)
    if draw is None:
        return Route(probabilities, expert, ones)
    chosen = jnp.take_along_axis(probabilities, expert[..., None], axis=-1)[..., 0]
    # Straight-through: exactly 1 forward, the winner's probability backward.
    return Route(probabilities, expert, 1 + (chosen - jax.lax.stop_gradient(chosen)))

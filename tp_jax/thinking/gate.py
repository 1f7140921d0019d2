"""The gate: which expert each token takes. All of it in float32.

B samples, N tokens, D width, H gate width, M experts.
"""

from typing import Any

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
      key: a PRNG key of (seed, stream, train_step).
      sample: [B] int32, each sample's index in the global batch.
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
    hidden = sum(_linear(params[name], x) for name, x in inputs.items() if name in params)
    hidden = jnp.broadcast_to(hidden, (*normed.shape[:2], hidden.shape[-1]))
    return _linear(params["out"], jax.nn.silu(hidden))


def _sample_keys(noise: RoutingNoise, layer: int, latent_step: jax.Array) -> jax.Array:
    key = jax.random.fold_in(jax.random.fold_in(noise.key, layer), latent_step)
    return jax.vmap(lambda sample: jax.random.fold_in(key, sample))(noise.sample)


def gumbel_noise(
    noise: RoutingNoise, layer: int, latent_step: jax.Array, tokens: int, experts: int
) -> jax.Array:
    """Gumbel(0, 1) noise [B, N, M] of (key, layer, latent_step, sample, token)."""
    keys = _sample_keys(noise, layer, latent_step)
    return jax.vmap(lambda key: jax.random.gumbel(key, (tokens, experts)))(keys)


def random_experts(
    noise: RoutingNoise, layer: int, latent_step: jax.Array, tokens: int, experts: int
) -> jax.Array:
    """Uniform experts [B, N] int32 of (key, layer, latent_step, sample, token)."""
    keys = _sample_keys(noise, layer, latent_step)
    return jax.vmap(lambda key: jax.random.randint(key, (tokens,), 0, experts))(keys)


def choose_experts(
    params: dict[str, Any] | None,
    config: ThinkingConfig,
    normed: jax.Array,
    time: jax.Array,
    condition: jax.Array,
    noise: RoutingNoise | None,
    layer: int,
    latent_step: jax.Array,
) -> Route:
    """Routes every token at one latent step.

    Args:
      params: of `init_gate`; None unless `config.gate` is "learned".
      normed: [B, N, D] LN(ã).
      time, condition: [B, D] embeddings.
      noise: None is sampling: no noise, `m = argmax logits`, `w = 1`.
      layer, latent_step: 0-based; both are folded into the noise.

    Raises:
      ValueError: `gate="random"` without noise.
    """
    tokens_shape, experts = normed.shape[:2], config.experts
    ones = jnp.ones(tokens_shape, jnp.float32)
    if config.gate == "first":
        expert = jnp.zeros(tokens_shape, jnp.int32)
        return Route(jax.nn.one_hot(expert, experts), expert, ones)
    if config.gate == "random":
        if noise is None:
            raise ValueError('gate="random" needs RoutingNoise, when sampling too')
        expert = random_experts(noise, layer, latent_step, tokens_shape[1], experts)
        return Route(jnp.full((*tokens_shape, experts), 1 / experts), expert, ones)

    logits = gate_logits(params, normed, time, condition)
    train = noise is not None and noise.train
    if train:
        logits += gumbel_noise(noise, layer, latent_step, tokens_shape[1], experts)
    probabilities = jax.nn.softmax(logits / config.temperature)
    expert = jnp.argmax(logits, axis=-1)
    if not train:
        return Route(probabilities, expert, ones)
    chosen = jnp.take_along_axis(probabilities, expert[..., None], axis=-1)[..., 0]
    # Straight-through: exactly 1 forward, the winner's probability backward.
    return Route(probabilities, expert, 1 + (chosen - jax.lax.stop_gradient(chosen)))

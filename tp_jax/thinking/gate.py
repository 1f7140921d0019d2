"""The gate, which chooses one expert for every token at every latent step.

B samples, N tokens, D width, H gate width, M experts, T latent steps. Everything here is float32.
"""

# jax and flax leave parts of what their functions take and return without a type.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import struct

from tp_jax.parallel.randomness import sample_keys
from tp_jax.thinking.config import ThinkingConfig

# TPUs multiply float32 in bfloat16 passes by default. A rounding error here could change a token's
# expert, and the gate is small, so use full precision.
PRECISION = jax.lax.Precision.HIGHEST


@struct.dataclass
class GateRandomness:
    """The PRNG key and the sample indices from which the gate draws its random numbers.

    The draws for a sample depend on the key and on the index of that sample only, and not on the
    rest of the batch, the mesh or the number of hosts.

    Attributes:
      key: a PRNG key, derived from (seed, "routing", train_step) in training and from (seed,
        sampler step) in sampling.
      sample: [B] int32, the index of each sample in the global batch, or in the request when
        sampling.
      train: True adds Gumbel noise to a learned gate and gives it the straight-through weight.
        With False a learned gate is deterministic; only `gate="random"` uses the key.
    """

    key: jax.Array
    sample: jax.Array
    train: bool = struct.field(pytree_node=False, default=True)


@struct.dataclass
class Route:
    """The gate's choice at one latent step.

    Attributes:
      probabilities: [B, N, M] float32, softmax(logits / temperature) with the Gumbel noise of
        training included.
      noiseless: [B, N, M] float32, softmax(logits), without noise and temperature; uniform for
        `gate="random"`, and one-hot for "first".
      preferred: [B, N, M] float32, one-hot at the largest logit; uniform for `gate="random"`.
      expert: [B, N] int32, the chosen expert.
      weight: [B, N] float32, the straight-through weight: 1 in the forward pass.
    """

    probabilities: jax.Array
    noiseless: jax.Array
    preferred: jax.Array
    expert: jax.Array
    weight: jax.Array


def init_gate(key: jax.Array, config: ThinkingConfig, width: int) -> dict[str, Any]:
    """Return initial parameters of the learned gate, all float32.

    Returns:
      {name: {"kernel", "bias"}}: one [D, H] kernel for each of `config.gate_inputs`, and "out" with
      an [H, M] kernel. Kernels are LeCun normal, biases zero.
    """
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
    """Compute the logits of the learned gate.

    Args:
      params: from `init_gate`.
      normed: [B, N, D] LN(ã), or what `config.gate_token` says.
      time, condition: [B, D] embeddings of the timestep and of the label or pooled text.

    Returns:
      [B, N, M] float32.
    """
    inputs = {"token": normed, "time": time[:, None], "condition": condition[:, None]}
    terms = (_linear(params[name], x) for name, x in inputs.items() if name in params)
    hidden = cast("jax.Array", sum(terms))
    hidden = jnp.broadcast_to(hidden, (*normed.shape[:2], hidden.shape[-1]))
    return _linear(params["out"], jax.nn.silu(hidden))


def latent_step_keys(key: jax.Array, steps: int, sample: jax.Array) -> jax.Array:
    """Return a key for each latent step of each sample.

    Args:
      key: a scalar key, of one layer.
      steps: number T of latent steps.
      sample: [B] int32, indices of the samples.

    Returns:
      Keys [T, B], each a function of (key, latent step, sample).
    """
    of_samples = functools.partial(sample_keys, sample=sample)
    return jax.vmap(of_samples)(sample_keys(key, jnp.arange(steps)))


def draw_routing(
    randomness: GateRandomness | None, config: ThinkingConfig, layer: int, steps: int, tokens: int
) -> jax.Array | None:
    """Draw the random numbers that the gate of one layer uses in all its latent steps.

    The draws for the tokens of a sample are a function of (key, layer, latent step, sample).

    Args:
      randomness: None, or `train=False` with a learned gate, makes the gate deterministic.
      layer: 0-based index of the block.
      steps: number T of latent steps.
      tokens: number N of vision tokens.

    Returns:
      For a learned gate, Gumbel(0, 1) noise [T, B, N, M] float32; for a random gate, expert
      indices [T, B, N] int32; None for a deterministic gate.

    Raises:
      ValueError: `gate="random"` without `randomness`.
    """
    if config.gate == "random" and randomness is None:
        raise ValueError('gate="random" needs GateRandomness in sampling as well as in training')
    if randomness is None or config.gate == "first":
        return None
    if config.gate == "learned" and not randomness.train:
        return None
    keys = latent_step_keys(jax.random.fold_in(randomness.key, layer), steps, randomness.sample)

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
    """Choose an expert for every token at one latent step.

    Args:
      params: from `init_gate`; None unless `config.gate` is "learned".
      normed: [B, N, D] LN(ã), or what `config.gate_token` says.
      time, condition: [B, D] embeddings of the timestep and of the label or pooled text.
      draw: the random numbers of this latent step, one row of `draw_routing`. With None a learned
        gate chooses the expert with the largest logit, with weight 1 (sampling).

    Returns:
      The chosen experts, their weights and the gate's probabilities.
    """
    tokens_shape, experts = normed.shape[:2], config.experts
    ones = jnp.ones(tokens_shape, jnp.float32)
    if config.gate == "first":
        expert = jnp.zeros(tokens_shape, jnp.int32)
        always = jax.nn.one_hot(expert, experts)
        return Route(always, always, always, expert, ones)
    if config.gate == "random":
        uniform = jnp.full((*tokens_shape, experts), 1 / experts)
        return Route(uniform, uniform, uniform, cast("jax.Array", draw), ones)

    logits = gate_logits(cast("dict[str, Any]", params), normed, time, condition)
    noiseless = jax.nn.softmax(logits)
    preferred = jax.nn.one_hot(jnp.argmax(logits, axis=-1), experts)
    if draw is not None:
        logits += draw
    probabilities = jax.nn.softmax(logits / config.temperature)
    expert = jnp.argmax(logits, axis=-1)
    if draw is None:
        return Route(probabilities, noiseless, preferred, expert, ones)
    chosen = jnp.take_along_axis(probabilities, expert[..., None], axis=-1)[..., 0]
    # Straight-through estimator: the forward value is exactly 1, and the gradient is that of the
    # chosen expert's probability.
    weight = 1 + (chosen - jax.lax.stop_gradient(chosen))
    return Route(probabilities, noiseless, preferred, expert, weight)

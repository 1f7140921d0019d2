"""Halting: a token may stop before the last latent step.

B samples, N vision tokens, D width, M experts, T latent steps.

A token that halts after latent step t keeps ã^t. At the later latent steps it takes no expert, and
it attends with the Q, K and V of step t. At latent step T the base projection is added to them. If
all tokens halt after step t, the result is therefore that of T = t (with shared experts).

- "threshold" halts a token when ‖ã^t − ã^{t−1}‖ ≤ ε·‖ã^{t−1}‖. Training ignores it.
- "ponder" (PonderNet, Banino et al., arXiv 2107.05407) has a halting unit,
  λ_t = sigmoid(LN(ã^t)·kernel + bias) for t < T. In training a token halts with probability λ_t; in
  sampling it halts at the first λ_t ≥ ½.

In training with "ponder", one draw per sample decides for all its tokens. With p the distribution
of these draws and q that of the prior, in which every token halts with probability λ_0, the loss is

    E_p[loss] + β·KL(p ‖ q) = E_p[R],   R = loss + β/N·Σ kl(λ ‖ λ_0)

where the sum runs over the tokens and latent steps at which the token had not halted before, and kl
is the divergence of two yes-or-no draws. The gradient of E_p[R] is

    E_p[∇R + (R − b)·∇log p]

for any b that doesn't depend on the sample's own draw. One draw estimates it without bias. b is the
mean R of the other samples in the batch, which lowers the variance of the estimate.
"""

# jax and flax leave parts of what their functions take and return without a type.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import math
import zlib
from typing import cast

import jax
import jax.numpy as jnp
from flax import struct

from tp_jax.thinking.config import ThinkingConfig
from tp_jax.thinking.gate import PRECISION, GateRandomness, latent_step_keys


@struct.dataclass
class Held:
    """What is kept of every token's last latent step.

    Attributes:
      live: [B, N] bool, whether the token takes another latent step.
      entered: [B, N, D] the tokens ã that entered the last latent step of each token.
      delta: [B, N, 3, D] Δ of that latent step.
    """

    live: jax.Array
    entered: jax.Array
    delta: jax.Array

    @classmethod
    def start(cls, vision: jax.Array) -> "Held":
        """Return the state before the first latent step, for x̃ [B, N, D]."""
        batch, count, width = vision.shape
        delta = jnp.zeros((batch, count, 3, width), vision.dtype)
        return cls(jnp.ones((batch, count), bool), vision, delta)

    def entering(self, tokens: jax.Array) -> jax.Array:
        """Return the tokens [B, N, D] that enter the next latent step.

        The base projection sees of a halted token what it saw at the token's last latent step.
        """
        return self.choose(tokens, self.entered)

    def experts(self, chosen: jax.Array, experts: int) -> jax.Array:
        """Return the chosen experts [B, N] with the out-of-range expert M for halted tokens."""
        return jnp.where(self.live, chosen, experts)

    def deltas(self, delta: jax.Array) -> jax.Array:
        """Return Δ [B, N, 3, D] with that of their last latent step for halted tokens."""
        return self.choose(delta, self.delta)

    def choose(self, new: jax.Array, old: jax.Array) -> jax.Array:
        """Return `new` [B, N, …] for live tokens, and `old` for those that have halted.

        As long as no token has halted, the recursion must give the same bits as without halting.
        XLA would fuse a plain `where` into the operations that follow, and these could then round
        differently, but it doesn't fuse over the end of a `cond`.
        """
        live = self.live.reshape(*self.live.shape, *(1,) * (new.ndim - 2))
        return jax.lax.cond(live.all(), lambda: new, lambda: jnp.where(live, new, old))


@struct.dataclass
class Halt:
    """Which tokens halt after one latent step.

    Attributes:
      stop: [B, N] bool. It says nothing about tokens that have halted before.
      log_probability: [B, N] float32, log-probability of this draw; 0 without a draw.
      divergence: [B, N] float32, kl(λ_t ‖ λ_0) in nats; 0 without a draw.
    """

    stop: jax.Array
    log_probability: jax.Array
    divergence: jax.Array


def init_halt(config: ThinkingConfig, width: int) -> dict[str, jax.Array]:
    """Return initial parameters of the halting unit, with λ_t = λ_0 for every token.

    Returns:
      {"kernel": [D], "bias": [1]} float32.
    """
    return {"kernel": jnp.zeros(width), "bias": jnp.full(1, _logit(config.ponder_prior))}


def _logit(probability: float) -> float:
    return math.log(probability) - math.log1p(-probability)


def draw_halting(
    randomness: GateRandomness | None, config: ThinkingConfig, layer: int, steps: int, tokens: int
) -> jax.Array | None:
    """Draw the random numbers by which the tokens of one layer halt in training with "ponder".

    The draws for the tokens of a sample are a function of (key, layer, latent step, sample).

    Args:
      randomness: None, or `train=False`, draws nothing.
      config: names the kind of halting.
      layer: 0-based index of the block.
      steps: number T of latent steps.
      tokens: number N of vision tokens.

    Returns:
      [T-1, B, N] float32, uniform in [0, 1); None unless a model with "ponder" trains.
    """
    if randomness is None or not randomness.train or config.halting != "ponder":
        return None
    fold_in = jax.random.fold_in
    key = fold_in(fold_in(randomness.key, zlib.crc32(b"halting")), layer)

    def draw(key: jax.Array) -> jax.Array:
        return jax.random.uniform(key, (tokens,))

    return jax.vmap(jax.vmap(draw))(latent_step_keys(key, steps - 1, randomness.sample))


def moved_little(before: jax.Array, after: jax.Array, epsilon: float) -> jax.Array:
    """Return whether ‖after − before‖ ≤ ε·‖before‖, in float32: [B, N, D] twice -> [B, N] bool."""
    before, after = before.astype(jnp.float32), after.astype(jnp.float32)

    def norm(x: jax.Array) -> jax.Array:
        return jnp.sqrt(jnp.square(x).sum(-1))

    return norm(after - before) <= epsilon * norm(before)


def halting_logits(params: dict[str, jax.Array], normed: jax.Array) -> jax.Array:
    """Return logit(λ_t) [B, N] float32 for LN(ã^t) [B, N, D] float32."""
    return jnp.matmul(normed, params["kernel"], precision=PRECISION) + params["bias"]


def ponder(logits: jax.Array, draw: jax.Array | None, prior: float) -> Halt:
    """Halt tokens by their λ_t.

    Args:
      logits: [B, N] float32, logit(λ_t).
      draw: [B, N] in [0, 1), halts where it is below λ_t (training); None halts where λ_t ≥ ½.
      prior: λ_0.
    """
    if draw is None:
        zeros = jnp.zeros(logits.shape, jnp.float32)
        return Halt(logits >= 0, zeros, zeros)
    # Logarithms of λ and 1 − λ from the logit have finite gradients also where λ rounds to 0 or 1.
    halts, goes_on = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    probability = jax.nn.sigmoid(logits)
    stop = draw < probability
    divergence = probability * (halts - math.log(prior))
    divergence += (1 - probability) * (goes_on - math.log1p(-prior))
    return Halt(stop, jnp.where(stop, halts, goes_on), divergence)


def choose_halting(
    params: dict[str, jax.Array] | None,
    config: ThinkingConfig,
    before: jax.Array,
    after: jax.Array,
    normed: jax.Array,
    draw: jax.Array | None,
) -> Halt:
    """Decide which tokens halt after latent step t < T.

    Args:
      params: from `init_halt`; None unless `config.halting` is "ponder".
      config: names the kind of halting.
      before, after: [B, N, D] ã^{t-1} and ã^t.
      normed: [B, N, D] LN(ã^t).
      draw: [B, N], one row of `draw_halting`.
    """
    if config.halting == "ponder":
        logits = halting_logits(cast("dict[str, jax.Array]", params), normed)
        return ponder(logits, draw, config.ponder_prior)
    zeros = jnp.zeros(before.shape[:2], jnp.float32)
    return Halt(moved_little(before, after, config.halting_epsilon), zeros, zeros)


def score_term(cost: jax.Array, log_probability: jax.Array) -> jax.Array:
    """Return a term of value 0 whose gradient is (R − b)·∇log p, with b as in the head of the file.

    Args:
      cost: [B] R of each sample.
      log_probability: [B] log p of each sample's draw.

    Returns:
      [B] float32. With one sample, b is 0.
    """
    others = (cost.sum() - cost) / max(len(cost) - 1, 1)
    advantage = jax.lax.stop_gradient(cost - others)
    return advantage * (log_probability - jax.lax.stop_gradient(log_probability))


def with_last_expert(expert: jax.Array, experts: int) -> jax.Array:
    """Replace the out-of-range expert M of halted tokens by the last expert that they took.

    Args:
      expert: [T, B, N] int32, the experts of a trace; M at the latent steps after halting.
      experts: M.
    """
    taken = expert < experts
    last = jnp.take_along_axis(expert, taken.sum(0)[None] - 1, axis=0)
    return jnp.where(taken, expert, last)

"""The recursion of one thinking layer: a scan over latent steps 1 … T-1, then latent step T.

B samples, N vision tokens, L text tokens, D width, M experts, T latent steps.

    ã⁰ = x̃
    for t = 1 … T:
        u    = Mod(LN(ã^{t-1}))
        m, w = Gate(ã^{t-1}, time, condition)
        Δ    = w · (u A_m) B_m
        t < T:  ã^t = Attn(Δ) + x̃
        t = T:  return Attn(Δ + W x̃)

With `config.halting`, a token may stop before latent step T; `halting.py` says how.
x̃ is the block's modulated input, Mod its adaLN scale and shift, and W its own QKV projection.
Source: arXiv 2604.25299. `README.md` in this folder explains the loop.
"""

# jax and flax leave parts of what their functions take and return without a type.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import struct

from tp_jax.parallel.sharding import gather
from tp_jax.thinking.config import ThinkingConfig
from tp_jax.thinking.dispatch import get_dispatch
from tp_jax.thinking.experts import Experts
from tp_jax.thinking.gate import Route, choose_experts
from tp_jax.thinking.halting import Held, choose_halting

# Fields of `RoutingStats`, for one latent step or stacked over latent steps.
Fields = dict[str, jax.Array]


@struct.dataclass
class Conditioning:
    """The embeddings that condition a block.

    Attributes:
      time: [B, D] embedding of the timestep.
      condition: [B, D] embedding of the class label or of the pooled text.
    """

    time: jax.Array
    condition: jax.Array


@dataclasses.dataclass(frozen=True)
class AttentionInputs:
    """What a block passes to the thinking layer that replaces its attention.

    Attributes:
      vision: x̃ [B, N, D], the modulated input of the block, in the compute dtype.
      unmodulated: [B, N, D], the tokens that enter the block, before its LayerNorm and adaLN.
      scale, shift: [B, D] the block's adaLN modulation of the attention input.
      y: embeddings that the gate reads.
      base: QKV projection of the base model, [B, N, D] -> [B, N, 3, D].
      attend: attention, Q, K, V of the vision tokens [B, N, 3, D] -> (vision [B, N, D], text
        [B, L, D] or None). It already contains Q, K, V of the text tokens, which don't change.
    """

    vision: jax.Array
    unmodulated: jax.Array
    scale: jax.Array
    shift: jax.Array
    y: Conditioning
    base: Callable[[jax.Array], jax.Array]
    attend: Callable[[jax.Array], tuple[jax.Array, jax.Array | None]]


@struct.dataclass
class RoutingStats:
    """Routing statistics of one thinking layer, and on request its trace, per latent step.

    Attributes:
      entropy: [T] mean entropy of softmax(logits), without noise and temperature, in nats.
      expert_use: [T, M] share of the tokens for which each expert has the largest logit.
      drawn_entropy: [T] mean entropy of the probabilities of the draw, with noise and temperature.
      drawn_use: [T, M] share of the tokens that were routed to each expert.
      importance: [T, M] mean probability of each expert in the draw.
      kept: [T-1] share of the tokens that keep the expert of the previous latent step.
      live: [T] share of the tokens that take each latent step; their sum is the mean number of
        latent steps. None without halting, as the next two. With halting, the means above are over
        the tokens that take the latent step, and 0 where none does.
      halting_log_probability: [B] log-probability of the halting draw of each sample's tokens; 0
        unless "ponder" trains.
      halting_divergence: [B] divergence of the draw's distribution from the prior, estimated by the
        draw, in nats per token; 0 unless "ponder" trains.
      probabilities: [T, B, N, M] of the draw, with noise and temperature; None without a trace.
      noiseless: [T, B, N, M] softmax(logits); None without a trace.
      expert: [T, B, N] int32, the chosen experts, and M for tokens that have halted; None without a
        trace.
      tokens: [T, B, N, D] the tokens that enter each latent step, ã⁰ … ã^{T-1}; None without a
        trace.
      inputs: [T, B, N, D] Mod(LN(ã)), what the experts multiply; None without a trace.
      text: [T-1, B, L, D] the text outputs of attention at latent steps 1 … T-1; None without a
        trace or without text tokens.
    """

    entropy: jax.Array
    expert_use: jax.Array
    drawn_entropy: jax.Array
    drawn_use: jax.Array
    importance: jax.Array
    kept: jax.Array
    live: jax.Array | None = None
    halting_log_probability: jax.Array | None = None
    halting_divergence: jax.Array | None = None
    probabilities: jax.Array | None = None
    noiseless: jax.Array | None = None
    expert: jax.Array | None = None
    tokens: jax.Array | None = None
    inputs: jax.Array | None = None
    text: jax.Array | None = None


def layer_norm(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """Apply LayerNorm (eps 1e-6) with scale and bias: x [..., D] -> [..., D] float32."""
    x = x.astype(jnp.float32)
    centred = x - x.mean(-1, keepdims=True)
    normed = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-6)
    return normed * params["scale"] + params["bias"]


def think(
    params: dict[str, Any],
    block: AttentionInputs,
    *,
    config: ThinkingConfig,
    draws: jax.Array | None = None,
    halting_draws: jax.Array | None = None,
    latent_steps: int | None = None,
    trace: bool = False,
) -> tuple[jax.Array, jax.Array | None, RoutingStats]:
    """Run the recursion of one layer, in place of the attention of its block.

    Args:
      params: parameters of the layer, from `layer.init_thinking_layer`.
      block: the inputs from the block.
      config: sizes and choices.
      draws: random numbers of the gate for all latent steps, from `gate.draw_routing`; None for
        deterministic routing.
      halting_draws: random numbers by which tokens halt, from `halting.draw_halting`; None for
        deterministic halting.
      latent_steps: overrides `config.latent_steps`.
      trace: return the probabilities, experts and tokens of every latent step.

    Returns:
      The vision and text outputs of attention at the last latent step, and the statistics of
      all latent steps.

    Raises:
      UserError: the layer has no experts for this many latent steps.
    """
    steps = config.latent_steps if latent_steps is None else latent_steps
    config.check_latent_steps(steps)
    vision, y = block.vision, block.y
    batch, count, width = vision.shape
    dispatch = get_dispatch(config, batch, count, width, vision.dtype, steps)
    experts_name = "experts" if config.share_across_steps else "step_experts"
    experts = dispatch.prepare_experts(
        Experts(**params[experts_name]), f"thinking/layer_0/{experts_name}", vision.dtype
    )
    # The sharding rules are the same for every layer, so "layer_0" stands for this one.
    params = gather({k: v for k, v in params.items() if k != experts_name}, "thinking/layer_0")

    def route(
        tokens: jax.Array, experts: Experts, draw: jax.Array | None, held: Held | None
    ) -> tuple[jax.Array, jax.Array, Route]:
        normed = seen = layer_norm(params["norm"], tokens)
        if config.gate_token == "unmodulated":
            change = tokens.astype(jnp.float32) - vision
            seen = layer_norm(params["norm"], block.unmodulated + change)
        chosen = choose_experts(params.get("gate"), config, seen, y.time, y.condition, draw)
        u = normed
        if config.modulate:
            u = (1 + block.scale[:, None]) * normed + block.shift[:, None]
        u = u.astype(vision.dtype)
        if held is not None:
            taken = held.experts(chosen.expert, config.experts)
            chosen = dataclasses.replace(chosen, expert=taken)
        delta = dispatch(u, chosen.expert, chosen.weight, experts)
        return u, delta if held is None else held.deltas(delta), chosen

    def intermediate_step(
        state: tuple[jax.Array, Held | None],
        inputs: tuple[jax.Array | None, jax.Array | None, Experts | None],
    ) -> tuple[tuple[jax.Array, Held | None], Fields]:
        (tokens, held), (draw, halting_draw, experts) = state, inputs
        entering = tokens if held is None else held.entering(tokens)
        u, delta, chosen = route(
            entering, cast("Experts", shared) if experts is None else experts, draw, held
        )
        qkv = delta + block.base(entering) if config.base_every_step else delta
        attended, text = block.attend(qkv)
        moved = attended + vision
        fields = step_fields(chosen, tokens, u, held)
        if trace and text is not None:
            fields["text"] = text
        if held is None:
            return (moved, None), fields
        live, normed = held.live, layer_norm(params["norm"], moved)
        halt = choose_halting(params.get("halt"), config, tokens, moved, normed, halting_draw)
        fields |= {
            "halting_log_probability": jnp.where(live, halt.log_probability, 0).sum(-1),
            "halting_divergence": jnp.where(live, halt.divergence, 0).mean(-1),
        }
        return (held.choose(moved, tokens), Held(live & ~halt.stop, entering, delta)), fields

    def step_fields(chosen: Route, tokens: jax.Array, u: jax.Array, held: Held | None) -> Fields:
        traced = {"tokens": tokens, "inputs": u} if trace else None
        return _step_fields(chosen, traced, None if held is None else held.live)

    if config.share_across_steps:
        shared, per_step, last = experts, None, experts
    else:
        shared, per_step, last = None, *_split_experts(experts, steps)
    step_draws, last_draw = (None, None) if draws is None else (draws[:-1], draws[-1])
    start = vision, None if config.halting == "none" else Held.start(vision)
    (tokens, held), fields = jax.lax.scan(
        intermediate_step, start, (step_draws, halting_draws, per_step), length=steps - 1
    )
    entering = tokens if held is None else held.entering(tokens)
    u, delta, chosen = route(entering, last, last_draw, held)
    base_input = entering if config.base_every_step else vision
    if config.base_input == "recursed":
        base_input = vision + u
    attended, text = block.attend(delta + block.base(base_input))
    earlier_text = fields.pop("text", None)
    stats = _combine(fields, step_fields(chosen, tokens, u, held), trace)
    return attended, text, dataclasses.replace(stats, text=earlier_text)


def _split_experts(experts: Experts, steps: int) -> tuple[Experts, Experts]:
    """Return the experts of the intermediate latent steps [T-1, …], and those of the last.

    With fewer latent steps than in training, the last one still uses the last set of experts,
    because no other set was trained together with the base projection.
    """

    def intermediate(leaf: jax.Array) -> jax.Array:
        return leaf[: steps - 1]

    def last(leaf: jax.Array) -> jax.Array:
        return leaf[-1]

    return jax.tree.map(intermediate, experts), jax.tree.map(last, experts)


def _step_fields(chosen: Route, traced: Fields | None, live: jax.Array | None) -> Fields:
    """Return the statistics of one latent step, and its trace if the traced tokens are given.

    The means are over the tokens that `live` [B, N] names; None names all.
    """
    p = chosen.probabilities
    fields = {
        "entropy": _mean_entropy(chosen.noiseless, live),
        "expert_use": _mean(chosen.preferred, live),
        "drawn_entropy": _mean_entropy(p, live),
        "drawn_use": _mean(jax.nn.one_hot(chosen.expert, p.shape[-1]), live),
        "importance": _mean(p, live),
        "expert": chosen.expert,
    }
    if live is not None:
        fields["live"] = live
    if traced is not None:
        fields |= {"probabilities": p, "noiseless": chosen.noiseless, **traced}
    return fields


def _mean_entropy(p: jax.Array, live: jax.Array | None) -> jax.Array:
    return -_mean(jnp.sum(jax.scipy.special.xlogy(p, p), axis=-1), live)


def _mean(values: jax.Array, live: jax.Array | None) -> jax.Array:
    """Return the mean of [B, N, …] over samples and the tokens that are live; 0 without any."""
    if live is None:
        return values.mean((0, 1))
    mask = live.reshape(*live.shape, *(1,) * (values.ndim - 2))
    return jnp.where(mask, values, 0).sum((0, 1)) / jnp.maximum(live.sum(), 1)


def _combine(intermediate: Fields, last: Fields, trace: bool) -> RoutingStats:
    """Join the fields of latent steps 1 … T-1, stacked, with those of latent step T."""
    joined = {name: jnp.concatenate([intermediate[name], last[name][None]]) for name in last}
    expert, live = joined.pop("expert"), joined.pop("live", None)
    same = expert[1:] == expert[:-1]
    if live is None:
        kept = same.mean((1, 2))
    else:
        kept = (same & live[1:]).sum((1, 2)) / jnp.maximum(live[1:].sum((1, 2)), 1)
        joined["live"] = live.mean((1, 2))
        for name in ("halting_log_probability", "halting_divergence"):
            joined[name] = intermediate[name].sum(0)
    return RoutingStats(kept=kept, expert=expert if trace else None, **joined)


def over_latent_steps(values: jax.Array, stats: RoutingStats) -> jax.Array:
    """Return the mean over latent steps of a statistic [T, …], weighted by their live tokens."""
    if stats.live is None:
        return values.mean(0)
    return jnp.average(values, axis=0, weights=stats.live)


def balance_loss(stats: RoutingStats) -> jax.Array:
    """Return the variance of the experts' importance over its squared mean; 0 if all are equal.

    This is the squared coefficient of variation of Shazeer et al. (arXiv 1701.06538), computed
    from the variance: the square root in the standard deviation has a NaN gradient where all
    experts are equal, as with a zero-initialised gate.
    """
    importance = over_latent_steps(stats.importance, stats)
    return importance.var() / jnp.square(importance.mean())

"""The recursion of one thinking layer: METHOD's loop, as a scan and a last step.

B samples, N vision tokens, L text tokens, D width, M experts, T latent steps.

    ã⁰ = x̃
    for t = 1 … T:
        u    = Mod(LN(ã^{t-1}))
        m, w = Gate(ã^{t-1}, time, condition)
        Δ    = w · (u A_m) B_m
        t < T:  ã^t = Attn(Δ) + x̃
        t = T:  Attn(Δ + W x̃)

Source: arXiv 2604.25299.
"""

# jax and flax leave parts of what their functions take and return without a type.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

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

# The frozen projection: tokens [B, N, D] -> Q, K, V [B, N, 3, D].
Project = Callable[[jax.Array], jax.Array]
# Attention: vision's Q, K, V [B, N, 3, D] -> vision [B, N, D] and text [B, L, D] or None.
Attend = Callable[[jax.Array], tuple[jax.Array, jax.Array | None]]
# Fields of a `Thought`, of one latent step or of many.
Record = dict[str, jax.Array]


@struct.dataclass
class Conditioning:
    """What a block knows beside its tokens.

    Attributes:
      time, condition: [B, D] embeddings of the timestep and of the label or pooled text.
    """

    time: jax.Array
    condition: jax.Array


@struct.dataclass
class Thought:
    """What one thinking layer did, per latent step (axis T first).

    Attributes:
      entropy: [T] mean entropy in nats of the gate's probabilities.
      expert_use: [T, M] share of the tokens that each expert took.
      importance: [T, M] mean probability of each expert.
      kept: [T-1] share of the tokens that keep their expert from the step before.
      probabilities, expert, tokens: [T, B, N, M], [T, B, N] and ã^{t-1} [T, B, N, D]; None
        unless a trace was asked for.
    """

    entropy: jax.Array
    expert_use: jax.Array
    importance: jax.Array
    kept: jax.Array
    probabilities: jax.Array | None = None
    expert: jax.Array | None = None
    tokens: jax.Array | None = None


def layer_norm(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """LayerNorm in float32, eps 1e-6: x [..., D] -> float32 [..., D]."""
    x = x.astype(jnp.float32)
    centred = x - x.mean(-1, keepdims=True)
    normed = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-6)
    return normed * params["scale"] + params["bias"]


def think(
    params: dict[str, Any],
    vision: jax.Array,
    scale: jax.Array,
    shift: jax.Array,
    y: Conditioning,
    base: Project,
    attend: Attend,
    *,
    config: ThinkingConfig,
    draws: jax.Array | None = None,
    latent_steps: int | None = None,
    trace: bool = False,
) -> tuple[jax.Array, jax.Array | None, Thought]:
    """Runs one layer's recursion in place of its attention.

    Args:
      params: {"norm", "experts" or "step_experts", and "gate" if it is learned}.
      vision: x̃ [B, N, D], the block's modulated input, in the compute dtype.
      scale, shift: [B, D] the block's adaLN modulation of attention.
      y: what the gate may see.
      base: frozen projection, [B, N, D] -> Q, K, V as [B, N, 3, D].
      attend: joint attention, vision's Q, K, V [B, N, 3, D] -> (vision [B, N, D], text
        [B, L, D] or None); the text's own Q, K, V are inside it.
      config: sizes and choices; `latent_steps` overrides its T.
      draws: of `gate.draw_routing`, for every latent step; None samples deterministically.
      trace: keep every latent step's probabilities, experts and tokens.

    Returns:
      Attention's vision and text outputs at the last latent step, and what was thought.

    Raises:
      UserError: more latent steps than the layer has experts for.
    """
    steps = config.latent_steps if latent_steps is None else latent_steps
    config.check_latent_steps(steps)
    batch, count, width = vision.shape
    dispatch = get_dispatch(config, batch, count, width, vision.dtype, steps)
    experts_name = "experts" if config.share_across_steps else "step_experts"
    experts = dispatch.bring(
        Experts(**params[experts_name]), f"thinking/layer_0/{experts_name}", vision.dtype
    )
    params = gather({k: v for k, v in params.items() if k != experts_name}, "thinking/layer_0")

    def route(
        tokens: jax.Array, experts: Experts, draw: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, Route]:
        normed = layer_norm(params["norm"], tokens)
        chosen = choose_experts(params.get("gate"), config, normed, y.time, y.condition, draw)
        u = (1 + scale[:, None]) * normed + shift[:, None] if config.modulate else normed
        u = u.astype(vision.dtype)
        return u, dispatch(u, chosen.expert, chosen.weight, experts), chosen

    def base_qkv(u: jax.Array) -> jax.Array:
        return base(vision if config.base_input == "modulated" else vision + u)

    def intermediate_step(
        tokens: jax.Array, inputs: tuple[jax.Array | None, Experts | None]
    ) -> tuple[jax.Array, Record]:
        draw, experts = inputs
        u, delta, chosen = route(
            tokens, cast("Experts", shared) if experts is None else experts, draw
        )
        if config.base_every_step:
            delta += base_qkv(u)
        attended, _ = attend(delta)
        return attended + vision, record(chosen, tokens)

    def record(chosen: Route, tokens: jax.Array) -> Record:
        return _record(chosen, tokens if trace else None)

    if config.share_across_steps:
        shared, per_step, last = experts, None, experts
    else:
        shared, per_step, last = None, *_experts_of_steps(experts, steps)
    before, last_draw = (None, None) if draws is None else (draws[:-1], draws[-1])
    tokens, records = jax.lax.scan(intermediate_step, vision, (before, per_step), length=steps - 1)
    u, delta, chosen = route(tokens, last, last_draw)
    attended, text = attend(delta + base_qkv(u))
    return attended, text, _summarise(records, record(chosen, tokens), trace)


def _experts_of_steps(experts: Experts, steps: int) -> tuple[Experts, Experts]:
    """Experts of the steps before the last [T-1, …], and of the last."""

    def before(leaf: jax.Array) -> jax.Array:
        return leaf[: steps - 1]

    def last(leaf: jax.Array) -> jax.Array:
        return leaf[-1]

    return jax.tree.map(before, experts), jax.tree.map(last, experts)


def _record(chosen: Route, tokens: jax.Array | None) -> Record:
    p = chosen.probabilities
    record = {
        "entropy": -jnp.sum(jax.scipy.special.xlogy(p, p), axis=-1).mean(),
        "expert_use": jax.nn.one_hot(chosen.expert, p.shape[-1]).mean((0, 1)),
        "importance": p.mean((0, 1)),
        "expert": chosen.expert,
    }
    if tokens is not None:
        record |= {"probabilities": p, "tokens": tokens}
    return record


def _summarise(records: Record, last: Record, trace: bool) -> Thought:
    joined = {name: jnp.concatenate([records[name], last[name][None]]) for name in last}
    expert = joined.pop("expert")
    kept = (expert[1:] == expert[:-1]).mean((1, 2))
    return Thought(kept=kept, expert=expert if trace else None, **joined)


def balance_loss(thought: Thought) -> jax.Array:
    """Variance over squared mean of the experts' importance; 0 when all are used alike.

    Unlike the squared coefficient of variation of Shazeer et al. (arXiv 1701.06538) as it is
    usually written, it takes no square root, whose gradient is NaN at a uniform gate.
    """
    importance = thought.importance.mean(0)
    return importance.var() / jnp.square(importance.mean())

"""Classifier-free guidance (Ho & Salimans, arXiv 2207.12598)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from tp_jax.diffusion.objective import expand


def guide(
    apply: Callable[..., jax.Array],
    condition: Any,
    null_condition: Any,
    *,
    scale: float,
    channels: int = 0,
    interval: tuple[float, float] = (0.0, 1.0),
) -> Callable[[jax.Array, jax.Array, Any], jax.Array]:
    """Turns a conditional prediction into a guided one.

    Args:
      apply: (x [B, …, C], timestep [B], condition, rest) -> output [B, …, C']; called once on
        twice the batch. `rest` is a pytree of leaves with a leading batch axis, or None.
      condition, null_condition: pytrees with a leading batch axis.
      scale: 1 is the conditional prediction itself, at half the cost.
      channels: how many of the first output channels are guided; the rest comes from the
        conditional half. 0 guides all.
      interval: guide only where timestep / 1000 lies in [low, high] (Kynkäänniemi et al.,
        arXiv 2404.07724).

    Returns:
      (x, timestep, rest) -> guided output.
    """

    if scale == 1:
        return lambda x, timestep, rest=None: apply(x, timestep, condition, rest)

    def join(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.concatenate([a, b])

    def twice(tree: Any) -> Any:
        return jax.tree.map(join, tree, tree)

    both = jax.tree.map(join, condition, null_condition)
    low, high = interval

    def guided(x: jax.Array, timestep: jax.Array, rest: Any = None) -> jax.Array:
        output = apply(twice(x), twice(timestep), both, twice(rest))
        conditional, unconditional = jnp.split(output, 2)
        count = channels or output.shape[-1]
        inside = (low <= timestep / 1000) & (timestep / 1000 <= high)
        factor = expand(jnp.where(inside, scale, 1.0), output)
        difference = (conditional - unconditional)[..., :count]
        mixed = unconditional[..., :count] + factor * difference
        return jnp.concatenate([mixed, conditional[..., count:]], axis=-1)

    return guided

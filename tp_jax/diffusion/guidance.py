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
    """Return a prediction function with classifier-free guidance.

    Args:
      apply: (x [B, …, C], timestep [B], condition, rest) -> output [B, …, C']. It is called once,
        with the conditional and the unconditional batch concatenated. `rest` is any pytree of
        arrays with a leading batch axis, or None.
      condition, null_condition: pytrees with a leading batch axis.
      scale: guidance scale. With 1 only the conditional prediction is computed.
      channels: number of output channels, from the first, that are guided; the others are those of
        the conditional prediction. 0 guides all.
      interval: (low, high); guide only where low ≤ timestep / 1000 ≤ high (Kynkäänniemi et al.,
        arXiv 2404.07724).

    Returns:
      A function (x, timestep, rest) -> guided output.

    Example:
      >>> def apply(x, timestep, condition, rest):
      ...     return x * condition[:, None]
      >>> predict = guide(apply, jnp.array([3.0]), jnp.array([1.0]), scale=2.0)
      >>> predict(jnp.ones((1, 2)), jnp.array([500.0])).tolist()  # 1 + 2 · (3 - 1)
      [[5.0, 5.0]]
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

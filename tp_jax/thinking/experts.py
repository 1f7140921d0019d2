"""LoRA experts: M pairs of A [D, r] and B [r, D] for each of Q, K and V."""

# jax and flax leave parts of what their functions take and return without a type.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

from tp_jax.thinking.config import ThinkingConfig


@struct.dataclass
class Experts:
    """The experts of one latent step; the axis of 3 is Q, K, V.

    Attributes:
      lora_a: [M, D, 3, r] float32.
      lora_b: [M, 3, r, D] float32.
    """

    lora_a: jax.Array
    lora_b: jax.Array


# A form of dispatch, see `thinking/dispatch.py`.
Form = Callable[[jax.Array, jax.Array, jax.Array, Experts], jax.Array]


def init_experts(key: jax.Array, config: ThinkingConfig, width: int) -> dict[str, jax.Array]:
    """A is LeCun normal over D, B is zero, so that thinking starts as the identity.

    Returns:
      {"lora_a": [M, D, 3, r], "lora_b": [M, 3, r, D]}, with a leading axis of T where each
      latent step has its own experts.
    """
    steps = () if config.share_across_steps else (config.latent_steps,)
    shape_a = (*steps, config.experts, width, 3, config.rank)
    shape_b = (*steps, config.experts, 3, config.rank, width)
    lecun = jax.nn.initializers.variance_scaling(
        1.0,
        "fan_in",
        "truncated_normal",
        in_axis=-3,
        out_axis=-1,
        batch_axis=(*range(len(steps) + 1), -2),
    )
    return {"lora_a": lecun(key, shape_a), "lora_b": jnp.zeros(shape_b)}

"""LoRA experts: M pairs of matrices A [D, r] and B [r, D] for each of Q, K and V.

B samples, N tokens, D width, M experts, r rank, T latent steps.
"""

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
    """The experts of one latent step. The axis of size 3 is Q, K, V.

    Attributes:
      lora_a: [M, D, 3, r] float32.
      lora_b: [M, 3, r, D] float32.
    """

    lora_a: jax.Array
    lora_b: jax.Array


# Applies to every token its own expert: (u [B, N, D], expert [B, N], weight [B, N], experts) ->
# Δ [B, N, 3, D]. `thinking/dispatch.py` has the implementations.
DispatchFunction = Callable[[jax.Array, jax.Array, jax.Array, Experts], jax.Array]


def init_experts(key: jax.Array, config: ThinkingConfig, width: int) -> dict[str, jax.Array]:
    """Return initial experts: A is LeCun normal over D, B is zero.

    With B = 0 every Δ is zero, so a newly attached thinking layer leaves the model unchanged.

    Returns:
      {"lora_a": [M, D, 3, r], "lora_b": [M, 3, r, D]} float32, both with a leading axis T unless
      `config.share_across_steps`.
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

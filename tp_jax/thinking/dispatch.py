"""Dispatch: brings every token to its expert. All forms give the same values and gradients.

B samples, N tokens, D width, M experts, r rank. No form drops a token, whatever the routing.
A form is a function `(u [B,N,D], expert [B,N], weight [B,N], experts) -> Δ [B,N,3,D]`.

`dense` and `grouped` compute where the tokens are, with the experts that are there. On a mesh that
means that weights move: `bring` gathers the small matrices once a layer. `expert_parallel` leaves
them where they are and moves tokens. "auto" takes what the counts of `thinking/cost.py` favour.
"""

# jax and flax leave parts of what their functions take and return without a type.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from tp_jax.parallel.mesh import BATCH_AXES
from tp_jax.parallel.sharding import gather
from tp_jax.thinking.config import ThinkingConfig
from tp_jax.thinking.cost import Setting, cheapest, costs, setting_of
from tp_jax.thinking.expert_parallel import expert_parallel, padded
from tp_jax.thinking.experts import Experts, Form

TILE = 128  # rows; what the TPU kernel multiplies at once


def dense(u: jax.Array, expert: jax.Array, weight: jax.Array, experts: Experts) -> jax.Array:
    """Multiplies by all experts joined into one matrix and masks those that weren't chosen.

    12·M·D·r FLOPs a token, in two large matrix products and nothing else.
    """
    lora_a, lora_b = experts.lora_a.astype(u.dtype), experts.lora_b.astype(u.dtype)
    chosen = jax.nn.one_hot(expert, lora_a.shape[0]) * weight[..., None]
    low = jnp.einsum("bnd,mdpr->bnmpr", u, lora_a, preferred_element_type=jnp.float32)
    low = (low * chosen[..., None, None]).astype(u.dtype)
    return jnp.einsum("bnmpr,mprd->bnpd", low, lora_b)


def grouped(u: jax.Array, expert: jax.Array, weight: jax.Array, experts: Experts) -> jax.Array:
    """Sorts tokens by expert, multiplies each group by its own expert, and sorts them back.

    12·D·r FLOPs a token where the hardware's grouped product is truly grouped. A token whose
    expert is M belongs to none and gets zeros.
    """
    batch, tokens, width = u.shape
    count, rank = experts.lora_a.shape[0], experts.lora_a.shape[-1]
    lora_a, lora_b = experts.lora_a.astype(u.dtype), experts.lora_b.astype(u.dtype)
    expert, weight = expert.reshape(-1), weight.reshape(-1)
    order = jnp.argsort(expert)
    sizes = jnp.bincount(expert, length=count).astype(jnp.int32)
    low = grouped_matmul(
        u.reshape(-1, width)[order], lora_a.reshape(count, width, 3 * rank), sizes, jnp.float32
    )
    low = (low * weight[order, None]).astype(u.dtype).reshape(-1, 3, rank)
    delta = jnp.stack(
        [grouped_matmul(low[:, i], lora_b[:, i], sizes, u.dtype) for i in range(3)], axis=1
    )
    return delta[jnp.argsort(order)].reshape(batch, tokens, 3, -1)


def grouped_matmul(
    rows: jax.Array, weights: jax.Array, sizes: jax.Array, dtype: jnp.dtype
) -> jax.Array:
    """Rows [S, K] in M groups of `sizes` [M] int32, by weights [M, K, L] -> [S, L] of `dtype`.

    Rows after the last group get zeros. On TPUs, where XLA may multiply every row by every group,
    it is the Pallas kernel of megablox (Gale et al., arXiv 2211.15841).
    """

    def ragged(rows: jax.Array, weights: jax.Array, sizes: jax.Array) -> jax.Array:
        return jax.lax.ragged_dot(rows, weights, sizes, preferred_element_type=dtype)

    return jax.lax.platform_dependent(
        rows, weights, sizes, tpu=functools.partial(megablox, dtype=dtype), default=ragged
    )


def megablox(
    rows: jax.Array,
    weights: jax.Array,
    sizes: jax.Array,
    dtype: jnp.dtype,
    interpret: bool = False,
) -> jax.Array:
    """As `grouped_matmul`, for TPUs; `interpret` runs the kernel anywhere, slowly."""
    # Pallas takes long to import, and only TPUs need it.
    from jax.experimental.pallas.ops.tpu.megablox import ops

    count = len(rows)
    filled = jnp.pad(rows, ((0, -count % TILE), (0, 0)))
    tiling = (TILE, TILE, TILE)
    gmm = cast("Callable[..., jax.Array]", ops.gmm)
    product = gmm(filled, weights, sizes, dtype, tiling, None, None, False, interpret)[:count]
    # The kernel leaves rows of no group as they were in memory.
    in_group = jnp.arange(count) < sizes.sum()
    return jnp.where(in_group[:, None], product, 0)


LOCAL: dict[str, Form] = {"dense": dense, "grouped": grouped}
DISPATCHES = (*LOCAL, "expert_parallel")


@dataclasses.dataclass(frozen=True)
class Dispatch:
    """A form on the mesh in context, or on one device where there is none.

    Attributes:
      name: one of `DISPATCHES`.
      local: the form that computes on a device: its name in `LOCAL`.
    """

    name: str
    local: str
    setting: Setting

    def describe(self) -> str:
        """What it is, and what was counted, as one line."""
        found = costs(self.setting)
        parts = [
            f"{name} {cost.flops / 1e9:,.2f} GFLOP and {cost.exchanged / 2**20:,.1f} MiB received"
            for name, cost in sorted(found.items(), key=lambda item: item[0] != self.name)
        ]
        where = f" ({self.local} on each device)" if self.name != self.local else ""
        return f"dispatch {self.name}{where}; counts of a layer on a device: {', '.join(parts)}"

    def bring(self, experts: Experts, name: str, dtype: jnp.dtype) -> Experts:
        """The experts as `__call__` wants them, once a layer; leaves may lead with latent steps.

        Args:
          name: path of the experts among the parameters, for its sharding rules.
          dtype: of computation; they are cast before they travel.
        """
        fields = {key: leaf.astype(dtype) for key, leaf in vars(experts).items()}
        moves = self.name == "expert_parallel"
        fields = gather(fields, name, kept=("heads", "expert") if moves else ("heads",))
        if moves:
            axis = fields["lora_a"].ndim - 4
            fields = {k: padded(leaf, axis, self.setting.devices) for k, leaf in fields.items()}
        return Experts(**fields)

    def __call__(
        self, u: jax.Array, expert: jax.Array, weight: jax.Array, experts: Experts
    ) -> jax.Array:
        """Δ [B, N, 3, D] of u [B, N, D], expert [B, N] int32 and weight [B, N] float32."""
        local = LOCAL[self.local]
        if jax.sharding.get_abstract_mesh().empty:
            return local(u, expert, weight, experts)
        if self.name == "expert_parallel":
            return expert_parallel(u, expert, weight, experts, local)
        batch = PartitionSpec(BATCH_AXES)
        whole = cast("Any", PartitionSpec())
        cut = cast("Any", PartitionSpec(None, None, None, "tensor"))
        # Each device sorts its own tokens alone.
        return jax.shard_map(
            local,
            in_specs=(batch, batch, batch, Experts(whole, cut)),
            out_specs=PartitionSpec(BATCH_AXES, None, None, "tensor"),
            check_vma=False,
        )(u, expert, weight, experts)


def get_dispatch(
    config: ThinkingConfig,
    batch: int,
    tokens: int,
    width: int,
    dtype: jnp.dtype,
    steps: int | None = None,
) -> Dispatch:
    """The dispatch that a config asks for, on the mesh in context.

    Args:
      batch, tokens, width: B, N and D of the whole batch.
      dtype: of computation.
      steps: latent steps T; the config's by default.
    """
    steps = steps or config.latent_steps
    setting = setting_of(config, batch, tokens, width, jnp.dtype(dtype).itemsize, steps)
    name = cheapest(setting) if config.dispatch == "auto" else config.dispatch
    if name == "expert_parallel" and setting.devices == 1:
        name = cheapest(setting)
    local = cheapest(setting.on_one_device()) if name == "expert_parallel" else name
    return Dispatch(name, local, setting)

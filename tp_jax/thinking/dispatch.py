"""Dispatch: compute Δ of every token with the expert that the gate chose for it.

B samples, N tokens, D width, M experts, r rank. All implementations give the same values and
gradients, and none drops a token, whatever the routing.

A token may also have no expert: the out-of-range expert M stands for it, and gives Δ = 0. Tokens
that have halted have it, and the rows that pad the buffers of `expert_parallel`.

- `dense` multiplies every token by all experts and masks the result.
- `grouped` sorts the tokens by expert and multiplies each group by its own expert
  (`thinking/grouped.py`).
- `expert_parallel` sends every token to the device that holds its expert.

With `dense` and `grouped` the tokens stay on their device, and `Dispatch.prepare_experts` gathers
the expert matrices of a layer there. With `expert_parallel` the experts stay sharded.
`config.model.thinking.dispatch="auto"` chooses by the costs in `thinking/cost.py`.
"""

# jax and flax leave parts of what their functions take and return without a type.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from tp_jax.parallel.axes import BATCH_AXES
from tp_jax.parallel.sharding import gather
from tp_jax.thinking.config import ThinkingConfig
from tp_jax.thinking.cost import (
    CostInputs,
    cheapest_dispatch,
    dispatch_costs,
    get_cost_inputs,
)
from tp_jax.thinking.expert_parallel import expert_parallel, pad_experts
from tp_jax.thinking.experts import DispatchFunction, Experts
from tp_jax.thinking.grouped import grouped


def dense(u: jax.Array, expert: jax.Array, weight: jax.Array, experts: Experts) -> jax.Array:
    """Multiply every token by all experts, and mask the experts that were not chosen.

    This costs 12·M·D·r FLOPs per token, in one product with all A and one each for Q, K and V.

    Args:
      u: [B, N, D] tokens.
      expert: [B, N] int32, the expert of each token; M for a token without expert.
      weight: [B, N] float32, the factor of each token's Δ.
      experts: M experts, cast to the dtype of u.

    Returns:
      Δ [B, N, 3, D] in the dtype of u.
    """
    batch, tokens, width = u.shape
    count, rank = experts.lora_a.shape[0], experts.lora_a.shape[-1]
    lora_a = experts.lora_a.astype(u.dtype).transpose(1, 2, 0, 3).reshape(width, -1)
    lora_b = experts.lora_b.astype(u.dtype).transpose(1, 0, 2, 3).reshape(3, count * rank, -1)
    chosen = jax.nn.one_hot(expert.reshape(-1), count) * weight.reshape(-1, 1)
    mask = jnp.repeat(chosen, rank, axis=1)
    # One axis of tokens: XLA's CPU back end is slow at gradients that contract two axes.
    low = jnp.matmul(u.reshape(-1, width), lora_a, preferred_element_type=jnp.float32)
    parts = [
        (part * mask).astype(u.dtype) @ lora_b[i]
        for i, part in enumerate(jnp.split(low, 3, axis=-1))
    ]
    return jnp.stack(parts, axis=1).reshape(batch, tokens, 3, -1)


# The implementations that compute on one device, without exchanging tokens.
LOCAL_DISPATCHES: dict[str, DispatchFunction] = {"dense": dense, "grouped": grouped}
DISPATCHES = (*LOCAL_DISPATCHES, "expert_parallel")


@dataclasses.dataclass(frozen=True)
class Dispatch:
    """A dispatch on the mesh in context, or on one device if there is no mesh.

    Attributes:
      name: one of `DISPATCHES`.
      local: key in `LOCAL_DISPATCHES` of the implementation that computes on each device.
      cost_inputs: sizes from which the cost was computed.
    """

    name: str
    local: str
    cost_inputs: CostInputs

    def describe(self) -> str:
        """Return one line with the dispatch, its cost, and the costs of the alternatives."""
        costs = dispatch_costs(self.cost_inputs)

        def describe_cost(name: str) -> str:
            cost = costs[name]
            return f"{cost.flops / 1e9:,.2f} GFLOP, {cost.received_bytes / 2**20:,.1f} MiB received"

        where = f", with {self.local} on each device" if self.name != self.local else ""
        parts = [describe_cost(self.name)] if self.name in costs else []
        parts += [f"{name}: {describe_cost(name)}" for name in costs if name != self.name]
        return f"dispatch: {self.name}{where} (per layer and device: {'; '.join(parts)})"

    def prepare_experts(self, experts: Experts, name: str, dtype: jnp.dtype) -> Experts:
        """Cast, gather and pad the experts of a layer, once, for use by `__call__`.

        Args:
          experts: of the layer; with a leading axis T if each latent step has its own.
          name: path of the experts in the parameters, which selects their sharding rules.
          dtype: compute dtype. The experts are cast first, so that fewer bytes are exchanged.
        """
        fields = {key: leaf.astype(dtype) for key, leaf in vars(experts).items()}
        stay_sharded = self.name == "expert_parallel"
        fields = gather(fields, name, kept=("heads", "expert") if stay_sharded else ("heads",))
        if stay_sharded:
            axis, devices = fields["lora_a"].ndim - 4, self.cost_inputs.devices
            fields = {k: pad_experts(leaf, axis, devices) for k, leaf in fields.items()}
        return Experts(**fields)

    def __call__(
        self, u: jax.Array, expert: jax.Array, weight: jax.Array, experts: Experts
    ) -> jax.Array:
        """Return Δ [B, N, 3, D]; the arguments are those of `dense`."""
        local = LOCAL_DISPATCHES[self.local]
        if jax.sharding.get_abstract_mesh().empty:
            return local(u, expert, weight, experts)
        if self.name == "expert_parallel":
            # The experts may be padded. A token without expert must not be sent to a padding one.
            expert = jnp.where(expert < self.cost_inputs.experts, expert, experts.lora_a.shape[0])
            return expert_parallel(u, expert, weight, experts, local)
        batch = PartitionSpec(BATCH_AXES)
        lora_a = cast("Any", PartitionSpec())
        lora_b = cast("Any", PartitionSpec(None, None, None, "tensor"))
        # shard_map lets each device sort its own tokens only.
        return jax.shard_map(
            local,
            in_specs=(batch, batch, batch, Experts(lora_a, lora_b)),
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
    """Return the dispatch that a config asks for, on the mesh in context.

    `expert_parallel` without an `expert` axis in the mesh is treated as "auto".

    Args:
      config: names the dispatch.
      batch: global batch size B.
      tokens: number N of vision tokens.
      width: D.
      dtype: compute dtype.
      steps: number T of latent steps; None is the config's.
    """
    steps = steps or config.latent_steps
    inputs = get_cost_inputs(config, batch, tokens, width, jnp.dtype(dtype).itemsize, steps)
    name = cheapest_dispatch(inputs) if config.dispatch == "auto" else config.dispatch
    if name == "expert_parallel" and inputs.devices == 1:
        name = cheapest_dispatch(inputs)
    local = cheapest_dispatch(inputs.on_one_device()) if name == "expert_parallel" else name
    return Dispatch(name, local, inputs)

"""Analytic cost of each dispatch in FLOPs and bytes, by which `dispatch="auto"` chooses.

M experts, D width, r rank, T latent steps, S tokens on one device, E devices along the mesh axis
`expert`.
"""

import dataclasses
import math

import jax

from tp_jax.parallel.axes import BATCH_AXES
from tp_jax.parallel.chips import UNKNOWN_CHIP, Chip, find_chip
from tp_jax.thinking.config import ThinkingConfig

# Size of the buffers of `expert_parallel`, relative to what uniform routing would fill.
CAPACITY_FACTOR = 1.25


@dataclasses.dataclass(frozen=True)
class CostInputs:
    """The sizes that the cost of a dispatch depends on.

    Attributes:
      experts: M.
      width: D.
      rank: r.
      latent_steps: T.
      tokens: S, the number of tokens on one device.
      devices: E, the size of the mesh axis `expert`.
      fsdp: size of the mesh axis `fsdp`, over which every weight is also sharded.
      expert_sets: T if each latent step has its own experts, else 1.
      chip: the accelerator.
      itemsize: bytes per number in the compute dtype.
    """

    experts: int
    width: int
    rank: int
    latent_steps: int
    tokens: int
    devices: int
    fsdp: int
    expert_sets: int
    chip: Chip
    itemsize: int

    def on_one_device(self) -> "CostInputs":
        """Return the sizes of the part that one device computes under `expert_parallel`."""
        return dataclasses.replace(
            self,
            experts=-(-self.experts // self.devices),
            tokens=round(CAPACITY_FACTOR * self.tokens),
            devices=1,
            fsdp=1,
        )


@dataclasses.dataclass(frozen=True)
class Cost:
    """Cost of the forward pass of one thinking layer on one device, over all latent steps.

    Attributes:
      flops: FLOPs of the experts.
      sort_bytes: bytes read and written to sort the tokens by expert.
      received_bytes: bytes received from other devices.
    """

    flops: float
    sort_bytes: float
    received_bytes: float

    def seconds(self, chip: Chip) -> float:
        """Return a lower bound on the time if compute, memory and network don't overlap."""
        return (
            self.flops / chip.peak_flops
            + self.sort_bytes / chip.bandwidth
            + self.received_bytes / chip.interconnect
        )


def dispatch_costs(inputs: CostInputs) -> dict[str, Cost]:
    """Return the cost of each dispatch that is worth considering.

    `grouped` is left out where the hardware has no grouped matrix product (see
    `Chip.grouped_matmul`): there it costs as much as `dense`, plus the sorting. `expert_parallel`
    is left out where the mesh axis `expert` has size 1.
    """
    c = inputs
    remote_share = (c.devices - 1) / c.devices
    token_flops = 12 * c.width * c.rank * c.latent_steps * c.tokens
    # Sorting reads and writes the D inputs and 3·D outputs of each token once more.
    sort_bytes = 2 * 4 * c.width * c.itemsize * c.latent_steps * c.tokens
    weights = 6 * c.expert_sets * c.experts * c.width * c.rank * c.itemsize
    gathered = weights * (1 - 1 / (c.devices * c.fsdp))
    costs = {"dense": Cost(c.experts * token_flops, 0, gathered)}
    if c.chip.grouped_matmul:
        costs["grouped"] = Cost(token_flops, sort_bytes, gathered)
    if c.devices > 1:
        inner = c.on_one_device()
        local = dispatch_costs(inner)[cheapest_dispatch(inner)]
        sent = CAPACITY_FACTOR * 4 * c.width * c.itemsize * c.latent_steps * c.tokens * remote_share
        received = sent + weights / c.devices * (1 - 1 / c.fsdp)
        costs["expert_parallel"] = Cost(local.flops, local.sort_bytes + sort_bytes, received)
    return costs


def cheapest_dispatch(inputs: CostInputs) -> str:
    """Return the name of the dispatch with the lowest bound on its time."""
    costs = dispatch_costs(inputs)
    return min(costs, key=lambda name: costs[name].seconds(inputs.chip))


def get_cost_inputs(
    config: ThinkingConfig, batch: int, tokens: int, width: int, itemsize: int, steps: int
) -> CostInputs:
    """Return the sizes per device of a batch on the mesh in context.

    Args:
      config: gives M and r.
      batch: global batch size B.
      tokens: number N of vision tokens per sample.
      width: D.
      itemsize: bytes per number in the compute dtype.
      steps: number T of latent steps.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        shards, devices, fsdp, kind = 1, 1, 1, jax.devices()[0].device_kind
    else:
        shards = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
        devices, fsdp = mesh.shape["expert"], mesh.shape["fsdp"]
        kind = mesh.abstract_device.device_kind
    return CostInputs(
        config.experts,
        width,
        config.rank,
        steps,
        -(-batch * tokens // shards),
        devices,
        fsdp,
        1 if config.share_across_steps else steps,
        find_chip(kind) or UNKNOWN_CHIP,
        itemsize,
    )

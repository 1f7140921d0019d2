"""Analytic cost of each dispatch in FLOPs and bytes, by which `dispatch="auto"` chooses.

M experts, D width, r rank, T latent steps, S tokens on one device, E devices along the mesh axis
`expert`.
"""

import dataclasses
import math

import jax

from tp_jax.parallel.axes import BATCH_AXES
from tp_jax.parallel.chips import UNKNOWN_CHIP, Chip, find_chip
from tp_jax.parallel.mesh import device_kind
from tp_jax.thinking.config import ThinkingConfig

# Size of the buffers of `expert_parallel`, relative to what uniform routing would fill.
CAPACITY_FACTOR = 1.25
# Sizes of the tiles in which `grouped` multiplies tokens, where no kernel does.
TILES = (16, 32, 64, 128, 256, 512)


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
      moved_bytes: bytes read and written to sort the tokens by expert, and to copy the matrices of
        every tile's expert.
      received_bytes: bytes received from other devices.
    """

    flops: float
    moved_bytes: float
    received_bytes: float

    def seconds(self, chip: Chip) -> float:
        """Return a lower bound on the time if compute, memory and network don't overlap."""
        return (
            self.flops / chip.peak_flops
            + self.moved_bytes / chip.bandwidth
            + self.received_bytes / chip.interconnect
        )


def dispatch_costs(inputs: CostInputs) -> dict[str, Cost]:
    """Return the cost of each dispatch that is worth considering.

    Where the hardware has no grouped matrix product (see `Chip.grouped_matmul`), `grouped`
    multiplies padded tiles, whose matrices are copied first. `expert_parallel` is left out where
    the mesh axis `expert` has size 1.
    """
    c = inputs
    remote_share = (c.devices - 1) / c.devices
    token_flops = expert_flops(c.width, c.rank, c.latent_steps * c.tokens)
    # Sorting reads and writes the D inputs and 3·D outputs of each token once more.
    sort_bytes = 2 * 4 * c.width * c.itemsize * c.latent_steps * c.tokens
    weights = 6 * c.expert_sets * c.experts * c.width * c.rank * c.itemsize
    gathered = weights * (1 - 1 / (c.devices * c.fsdp))
    costs = {"dense": Cost(c.experts * token_flops, 0, gathered)}
    if c.chip.grouped_matmul:
        costs["grouped"] = Cost(token_flops, sort_bytes, gathered)
    else:
        tile = choose_tile(c.tokens, c.experts, c.width, c.rank, c.itemsize, c.chip)
        flops, copied = _tile_cost(c.tokens, c.experts, c.width, c.rank, c.itemsize, tile)
        moved = sort_bytes + c.latent_steps * copied
        costs["grouped"] = Cost(c.latent_steps * flops, moved, gathered)
    if c.devices > 1:
        inner = c.on_one_device()
        local = dispatch_costs(inner)[cheapest_dispatch(inner)]
        sent = CAPACITY_FACTOR * 4 * c.width * c.itemsize * c.latent_steps * c.tokens * remote_share
        received = sent + weights / c.devices * (1 - 1 / c.fsdp)
        costs["expert_parallel"] = Cost(local.flops, local.moved_bytes + sort_bytes, received)
    return costs


def expert_flops(width: int, rank: int, latent_steps: float) -> float:
    """Return the FLOPs of the experts that take a number of latent steps, forward.

    Args:
      width: D.
      rank: r.
      latent_steps: number of pairs of a token and a latent step at which it takes an expert, such
        as the number of tokens times their mean number of latent steps. With halting, this is what
        "grouped" multiplies on TPUs, where the kernel leaves out tokens without expert. Elsewhere
        the number of its tiles, and so the FLOPs, doesn't depend on the routing, and "dense"
        multiplies every token by all experts.

    Example:
      >>> expert_flops(width=4, rank=2, latent_steps=2.5 * 100)
      24000.0
    """
    return 12 * width * rank * latent_steps


def count_tiles(tokens: int, experts: int, tile: int) -> int:
    """Return the number of tiles that hold the tokens of all experts, whatever the routing.

    Args:
      tokens: S.
      experts: M. In the last tile of each, at most t - 1 rows are padding.
      tile: rows t in a tile.
    """
    return (tokens + min(experts, tokens) * (tile - 1)) // tile


def choose_tile(tokens: int, experts: int, width: int, rank: int, itemsize: int, chip: Chip) -> int:
    """Return the number of rows t in a tile for which the products take least time.

    Small tiles need less padding, and large tiles fewer copies of the experts' matrices.

    Args:
      tokens: S.
      experts: M.
      width: D.
      rank: r.
      itemsize: bytes per number in the compute dtype.
      chip: the accelerator.
    """

    def seconds(tile: int) -> float:
        flops, copied = _tile_cost(tokens, experts, width, rank, itemsize, tile)
        return flops / chip.peak_flops + copied / chip.bandwidth

    return min(TILES, key=seconds)


def _tile_cost(
    tokens: int, experts: int, width: int, rank: int, itemsize: int, tile: int
) -> tuple[float, float]:
    """Return the FLOPs of one latent step in tiles, and the bytes of copying their matrices."""
    tiles = count_tiles(tokens, experts, tile)
    # The matrices are read, written and read again by the product.
    return 12 * width * rank * tile * tiles, 3 * 6 * width * rank * itemsize * tiles


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
    shards = devices = fsdp = 1
    if not mesh.empty:
        shards = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
        devices, fsdp = mesh.shape["expert"], mesh.shape["fsdp"]
    return CostInputs(
        config.experts,
        width,
        config.rank,
        steps,
        -(-batch * tokens // shards),
        devices,
        fsdp,
        1 if config.share_across_steps else steps,
        current_chip(),
        itemsize,
    )


def current_chip() -> Chip:
    """Return the accelerator of the mesh in context, or of the first device without a mesh."""
    return find_chip(device_kind()) or UNKNOWN_CHIP

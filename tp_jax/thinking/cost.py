"""What each dispatch costs: FLOPs and bytes counted, and the rule behind `dispatch="auto"`.

M experts, D width, r rank, T latent steps; S tokens on a device, E devices along `expert`.
"""

import dataclasses
import math

import jax

from tp_jax.parallel.chips import UNKNOWN_CHIP, Chip, find_chip
from tp_jax.parallel.mesh import BATCH_AXES
from tp_jax.thinking.config import ThinkingConfig

# Rows that `expert_parallel` makes room for, over what an even routing fills.
SLACK = 1.25


@dataclasses.dataclass(frozen=True)
class Setting:
    """What the counts depend on.

    Attributes:
      experts, width, rank, steps: M, D, r, T.
      tokens: S, on one device.
      devices: E.
      fsdp: devices that each weight is cut over besides.
      sets: of experts: T where each latent step has its own, else 1.
      chip: of the devices.
      itemsize: bytes of a number in the compute dtype.
    """

    experts: int
    width: int
    rank: int
    steps: int
    tokens: int
    devices: int
    fsdp: int
    sets: int
    chip: Chip
    itemsize: int

    def on_one_device(self) -> "Setting":
        """What `expert_parallel` leaves for a device to compute: its own experts, and its rows."""
        return dataclasses.replace(
            self,
            experts=-(-self.experts // self.devices),
            tokens=round(SLACK * self.tokens),
            devices=1,
            fsdp=1,
        )


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one thinking layer on one device, forward, over all its latent steps.

    Attributes:
      flops: of the experts.
      moved: bytes read and written to put tokens in order.
      exchanged: bytes received from other devices.
    """

    flops: float
    moved: float
    exchanged: float

    def seconds(self, chip: Chip) -> float:
        """A bound, nothing overlapping."""
        return (
            self.flops / chip.peak_flops
            + self.moved / chip.bandwidth
            + self.exchanged / chip.interconnect
        )


def costs(setting: Setting) -> dict[str, Cost]:
    """The cost of each dispatch that applies.

    `grouped` only where the hardware groups (see `Chip.grouped_matmul`): elsewhere it costs what
    dense does, and the ordering comes on top. `expert_parallel` only where there are devices to
    exchange with.
    """
    s = setting
    away = (s.devices - 1) / s.devices
    token_flops = 12 * s.width * s.rank * s.steps * s.tokens
    # D values in and 3·D out, each read and written once more.
    ordering = 2 * 4 * s.width * s.itemsize * s.steps * s.tokens
    weights = 6 * s.sets * s.experts * s.width * s.rank * s.itemsize
    gathered = weights * (1 - 1 / (s.devices * s.fsdp))
    found = {"dense": Cost(s.experts * token_flops, 0, gathered)}
    if s.chip.grouped_matmul:
        found["grouped"] = Cost(token_flops, ordering, gathered)
    if s.devices > 1:
        inner = s.on_one_device()
        local = costs(inner)[cheapest(inner)]
        travelling = SLACK * 4 * s.width * s.itemsize * s.steps * s.tokens * away
        exchanged = travelling + weights / s.devices * (1 - 1 / s.fsdp)
        found["expert_parallel"] = Cost(local.flops, local.moved + ordering, exchanged)
    return found


def cheapest(setting: Setting) -> str:
    """The dispatch with the lowest bound on its time."""
    found = costs(setting)
    return min(found, key=lambda name: found[name].seconds(setting.chip))


def setting_of(
    config: ThinkingConfig, batch: int, tokens: int, width: int, itemsize: int, steps: int
) -> Setting:
    """The setting of a batch of B·N tokens of width D, T times, on the mesh in context."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        shards, devices, fsdp, kind = 1, 1, 1, jax.devices()[0].device_kind
    else:
        shards = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
        devices, fsdp = mesh.shape["expert"], mesh.shape["fsdp"]
        kind = mesh.abstract_device.device_kind
    return Setting(
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


def layer_parameters(width: int, config: ThinkingConfig) -> int:
    """Parameters of one thinking layer: its LayerNorm, its experts, and its gate if that learns."""
    sets = 1 if config.share_across_steps else config.latent_steps
    experts = 6 * sets * config.experts * width * config.rank
    gate = 0
    if config.gate == "learned":
        inputs = len(config.gate_inputs) * (width + 1) * config.gate_width
        gate = inputs + (config.gate_width + 1) * config.experts
    return 2 * width + experts + gate


def equal_rank(width: int, thinking: ThinkingConfig) -> int:
    """Rank of the plain LoRA that has as many parameters in the same layers, to the nearest.

    Plain LoRA is one expert, one latent step, and gate="first", which has no parameters.
    """
    norm = 2 * width
    return max(round((layer_parameters(width, thinking) - norm) / (6 * width)), 1)

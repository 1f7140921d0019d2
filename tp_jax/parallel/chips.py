"""What each accelerator can do, from its maker's public figures; per JAX device."""

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One JAX device.

    Attributes:
      peak_flops: dense bfloat16 FLOP/s.
      bandwidth: of its memory, bytes/s.
      memory: bytes.
      interconnect: to its neighbours, all links together, one direction, bytes/s.
      network: its share of the data-centre network, bytes/s; 0 isn't published.
      grouped_matmul: whether matrix products of sorted groups cost as much as their rows alone.
    """

    peak_flops: float
    bandwidth: float
    memory: float
    interconnect: float
    network: float = 0.0
    grouped_matmul: bool = False


# Keys are what `device.device_kind` starts with; the longest match wins. On TPUs groups are a
# Pallas kernel; on GPUs XLA may lower `ragged_dot` to a dense product.
CHIPS = {
    "TPU v4": Chip(275e12, 1.23e12, 32 * GIB, 300e9, grouped_matmul=True),
    "TPU v5 lite": Chip(197e12, 0.82e12, 16 * GIB, 200e9, 3.1e9, grouped_matmul=True),
    "TPU v5e": Chip(197e12, 0.82e12, 16 * GIB, 200e9, 3.1e9, grouped_matmul=True),
    "TPU v5": Chip(459e12, 2.77e12, 95 * GIB, 600e9, 6.2e9, grouped_matmul=True),
    "TPU v6 lite": Chip(918e12, 1.64e12, 32 * GIB, 400e9, 12.5e9, grouped_matmul=True),
    "TPU v6e": Chip(918e12, 1.64e12, 32 * GIB, 400e9, 12.5e9, grouped_matmul=True),
    "NVIDIA A100": Chip(312e12, 2.0e12, 80 * GIB, 300e9),
    "NVIDIA H100": Chip(989e12, 3.35e12, 80 * GIB, 450e9),
    "NVIDIA H200": Chip(989e12, 4.8e12, 141 * GIB, 450e9),
    "NVIDIA L4": Chip(121e12, 0.3e12, 24 * GIB, 32e9),
    "Tesla T4": Chip(65e12, 0.32e12, 16 * GIB, 16e9),
}
# For choices that need figures where none are published; a CPU core is about this.
UNKNOWN_CHIP = Chip(1e11, 2e10, 8 * GIB, 5e9)


def find_chip(device_kind: str) -> Chip | None:
    """The figures of a device kind, or None where no public peak is known (a CPU)."""
    names = [name for name in CHIPS if device_kind.startswith(name)]
    return CHIPS[max(names, key=len)] if names else None

"""Peak FLOP/s, memory and bandwidth of each accelerator, from the vendors' public specifications.

All figures are for one JAX device.
"""

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """The specification of one JAX device.

    Attributes:
      peak_flops: dense bfloat16 FLOP/s.
      bandwidth: memory bandwidth, bytes/s.
      memory: memory size, bytes.
      interconnect: bandwidth to the neighbouring chips, all links together, in one direction,
        bytes/s.
      network: the device's share of the data-centre network bandwidth, bytes/s; 0 if unpublished.
      grouped_matmul: whether there is a kernel for grouped matrix products, which costs only the
        FLOPs of its rows. Elsewhere `thinking/grouped.py` multiplies padded tiles.
    """

    peak_flops: float
    bandwidth: float
    memory: float
    interconnect: float
    network: float = 0.0
    grouped_matmul: bool = False


# Keys are prefixes of `device.device_kind`; the longest match wins. On TPUs a Pallas kernel
# computes grouped products.
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
# Used for cost estimates on devices without published figures; roughly two CPU cores.
UNKNOWN_CHIP = Chip(2e11, 2e10, 8 * GIB, 5e9)


def find_chip(device_kind: str) -> Chip | None:
    """Return the specification of a device kind, or None if none is published (as for CPUs)."""
    names = [name for name in CHIPS if device_kind.startswith(name)]
    return CHIPS[max(names, key=len)] if names else None

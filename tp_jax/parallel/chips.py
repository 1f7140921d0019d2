"""What each accelerator can do, from its maker's public figures; per JAX device."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """One JAX device: peak dense bfloat16 FLOP/s and memory bandwidth in bytes/s."""

    peak_flops: float
    bandwidth: float
    # Whether XLA lowers `jax.lax.ragged_dot` so that its cost follows the active rows alone.
    grouped_matmul: bool = False


# Keys are what `device.device_kind` starts with; the longest match wins.
CHIPS = {
    "TPU v4": Chip(275e12, 1.23e12),
    "TPU v5 lite": Chip(197e12, 0.82e12),
    "TPU v5e": Chip(197e12, 0.82e12),
    "TPU v5": Chip(459e12, 2.77e12, grouped_matmul=True),
    "TPU v6 lite": Chip(918e12, 1.64e12),
    "TPU v6e": Chip(918e12, 1.64e12),
    "NVIDIA A100": Chip(312e12, 2.0e12),
    "NVIDIA H100": Chip(989e12, 3.35e12),
    "NVIDIA H200": Chip(989e12, 4.8e12),
    "NVIDIA L4": Chip(121e12, 0.3e12),
    "Tesla T4": Chip(65e12, 0.32e12),
}


def find_chip(device_kind: str) -> Chip | None:
    """The figures of a device kind, or None where no public peak is known (a CPU)."""
    names = [name for name in CHIPS if device_kind.startswith(name)]
    return CHIPS[max(names, key=len)] if names else None

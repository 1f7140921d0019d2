"""The device mesh: axes `data`, `fsdp`, `tensor` and `expert`."""

import math
from collections.abc import Mapping

import jax
from jax.sharding import AxisType, Mesh

from tp_jax.errors import UserError

AXES = ("data", "fsdp", "tensor", "expert")
# A batch is cut along every axis that doesn't cut the layers themselves.
BATCH_AXES = ("data", "fsdp", "expert")


def create_mesh(sizes: Mapping[str, int], devices: list[jax.Device] | None = None) -> Mesh:
    """Makes the mesh.

    Args:
      sizes: size of each of `AXES`; at most one is -1 and takes the devices that are left.
      devices: the devices to use; all of them by default.

    Raises:
      UserError: the sizes don't multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = {axis: sizes[axis] for axis in AXES}
    text = ", ".join(f"{axis}={size}" for axis, size in shape.items())
    if any(size == 0 or size < -1 for size in shape.values()):
        raise UserError(f"config.mesh ({text}): a size is a positive number, or -1 for the rest")
    free = [axis for axis, size in shape.items() if size == -1]
    if len(free) > 1:
        raise UserError(f"config.mesh ({text}): only one axis may be -1")
    known = math.prod(size for size in shape.values() if size != -1)
    if free:
        shape[free[0]], remainder = divmod(len(devices), known)
    else:
        remainder = len(devices) - known
    if remainder:
        raise UserError(
            f"config.mesh ({text}) does not divide the {len(devices)} device(s) here: "
            f"make the sizes multiply to {len(devices)}, or set one to -1"
        )
    return jax.make_mesh(
        tuple(shape.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices
    )


def check_batch_size(mesh: Mesh, name: str, batch_size: int) -> None:
    """Raises a UserError unless the batch divides evenly over the mesh's batch axes."""
    shards = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    if batch_size < 1 or batch_size % shards:
        raise UserError(
            f"{name}={batch_size} does not divide over the mesh: make it a multiple of {shards} "
            f"(the product of config.mesh.{{{','.join(BATCH_AXES)}}})"
        )

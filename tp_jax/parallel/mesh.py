"""The device mesh: axes `slices`, `data`, `fsdp`, `tensor` and `expert`.

`slices` are TPU slices that only the data-centre network joins: parameters are whole in each, and
what crosses are sums of gradients.
"""

import math
from collections.abc import Mapping

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from tp_jax.messages.errors import UserError

AXES = ("slices", "data", "fsdp", "tensor", "expert")
# A batch is cut along every axis that doesn't cut the layers themselves.
BATCH_AXES = ("slices", "data", "fsdp", "expert")
ONE_DEVICE = dict.fromkeys(AXES, 1)
# `slices` 0 is as many as there are.
DATA_PARALLEL = ONE_DEVICE | {"slices": 0, "data": -1}


def create_mesh(sizes: Mapping[str, int], devices: list[jax.Device] | None = None) -> Mesh:
    """Makes the mesh.

    Args:
      sizes: size of each of `AXES`; at most one is -1 and takes the devices that are left. 0
        `slices` are as many as the TPUs here belong to, or one.
      devices: the devices to use; all of them by default.

    Raises:
      UserError: the sizes don't multiply to the number of devices, or `slices` isn't how many
        there are.
    """
    devices = jax.devices() if devices is None else devices
    shape = {axis: sizes[axis] for axis in AXES}
    shape["slices"] = shape["slices"] or len(_slice_indices(devices))
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
    slices = _slices(devices, shape["slices"], text)
    inner = tuple(shape.values())[1:]
    # A long axis may take a part of a torus's ring, as 4 of data beside 256 of fsdp on 8x8x16.
    arranged = [
        mesh_utils.create_device_mesh(inner, part, allow_split_physical_axes=True)
        for part in slices
    ]
    return Mesh(np.stack(arranged), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _slice_indices(devices: list[jax.Device]) -> list[int]:
    """Of the TPU slices; GPUs number their hosts so, which are no slices."""
    tpus = devices[0].platform == "tpu"
    return sorted({getattr(device, "slice_index", 0) if tpus else 0 for device in devices})


def _slices(devices: list[jax.Device], count: int, text: str) -> list[list[jax.Device]]:
    """The devices of each slice; where the hardware has none, equal runs of them."""
    found = _slice_indices(devices)
    if len(found) > 1 and len(found) != count:
        raise UserError(
            f"config.mesh ({text}): the devices here are of {len(found)} slices: set "
            f"config.mesh.slices={len(found)}, or 0 for as many as there are"
        )
    if len(found) == 1:
        size = len(devices) // count
        return [devices[start : start + size] for start in range(0, len(devices), size)]
    return [[d for d in devices if d.slice_index == index] for index in found]


def batch_shards(mesh: Mesh) -> int:
    """Number of parts that a batch is cut into over a mesh."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def padded_batch_size(mesh: Mesh, count: int) -> int:
    """The smallest batch that holds `count` samples and divides over a mesh."""
    shards = batch_shards(mesh)
    return max(-(-count // shards), 1) * shards


def check_batch_size(mesh: Mesh, name: str, batch_size: int) -> None:
    """Raises a UserError unless the batch divides evenly over the mesh's batch axes."""
    shards = batch_shards(mesh)
    if batch_size < 1 or batch_size % shards:
        raise UserError(
            f"{name}={batch_size} does not divide over the mesh: make it a multiple of {shards} "
            f"(the product of config.mesh.{{{','.join(BATCH_AXES)}}})"
        )

"""The device mesh: axes `slices`, `data`, `fsdp`, `tensor` and `expert`.

`slices` counts TPU slices that are connected only by the data-centre network. Each slice holds all
parameters, so only gradient all-reduces cross that network.
"""

import math
from collections.abc import Mapping

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh

from tp_jax.messages.errors import UserError
from tp_jax.parallel.axes import AXES, BATCH_AXES


def create_mesh(sizes: Mapping[str, int], devices: list[jax.Device] | None = None) -> Mesh:
    """Make a mesh with the axes `AXES`.

    Args:
      sizes: the size of each of `AXES`. At most one size may be -1, which takes the remaining
        devices. `slices` may be 0, which means the number of TPU slices that the devices belong to
        (1 on other hardware).
      devices: the devices to use; by default all devices of the job.

    Returns:
      A mesh whose axes all have `AxisType.Auto`.

    Raises:
      UserError: the product of the sizes isn't the number of devices, or `slices` isn't the number
        of TPU slices.

    Example:
      >>> from tp_jax.parallel.axes import DATA_PARALLEL
      >>> mesh = create_mesh(DATA_PARALLEL, devices=jax.devices()[:1])
      >>> dict(mesh.shape)
      {'slices': 1, 'data': 1, 'fsdp': 1, 'tensor': 1, 'expert': 1}
    """
    devices = jax.devices() if devices is None else devices
    shape = {axis: sizes[axis] for axis in AXES}
    shape["slices"] = shape["slices"] or len(_slice_indices(devices))
    text = ", ".join(f"{axis}={size}" for axis, size in shape.items())
    if any(size == 0 or size < -1 for size in shape.values()):
        raise UserError(
            f"config.mesh ({text}): each size must be positive, or -1 for the remaining devices"
        )
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
            f"config.mesh ({text}) does not divide the {len(devices)} device(s) of this job: "
            f"choose sizes whose product is {len(devices)}, or set one of them to -1"
        )
    slices = _slices(devices, shape["slices"], text)
    inner = tuple(shape.values())[1:]
    # Allow two mesh axes to share one axis of the torus: data=4 × fsdp=256 on 8x8x16 needs it.
    arranged = [
        mesh_utils.create_device_mesh(inner, part, allow_split_physical_axes=True)
        for part in slices
    ]
    return Mesh(np.stack(arranged), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def deterministic_options(mesh: Mesh) -> dict[str, bool]:
    """Return the compiler options with which a program gives the same bits in every run.

    On CPUs, and on TPUs of the same kind, all programs do. On GPUs, XLA measures which kernels are
    the fastest whenever it compiles, and some kernels add in a varying order, such as the gradient
    of cuDNN's attention. This option excludes both.

    Example:
      >>> from tp_jax.parallel.axes import DATA_PARALLEL
      >>> deterministic_options(create_mesh(DATA_PARALLEL, devices=jax.devices("cpu")[:1]))
      {}
    """
    on_gpu = mesh.devices.flat[0].platform == "gpu"
    return {"xla_gpu_deterministic_ops": True} if on_gpu else {}


def _slice_indices(devices: list[jax.Device]) -> list[int]:
    """Return the indices of the TPU slices. On GPUs `slice_index` numbers hosts, so ignore it."""
    tpus = devices[0].platform == "tpu"
    return sorted({getattr(device, "slice_index", 0) if tpus else 0 for device in devices})


def _slices(devices: list[jax.Device], count: int, text: str) -> list[list[jax.Device]]:
    """Group the devices by slice; on hardware without slices, into consecutive equal parts."""
    found = _slice_indices(devices)
    if len(found) > 1 and len(found) != count:
        raise UserError(
            f"config.mesh ({text}): the devices belong to {len(found)} slices: set "
            f"config.mesh.slices={len(found)}, or 0 to use the number found"
        )
    if len(found) == 1:
        size = len(devices) // count
        return [devices[start : start + size] for start in range(0, len(devices), size)]
    return [[d for d in devices if d.slice_index == index] for index in found]


def device_kind() -> str:
    """Return the kind of the devices of the mesh in context; without a mesh, of those present."""
    mesh = jax.sharding.get_abstract_mesh()
    return (jax.devices()[0] if mesh.empty else mesh.abstract_device).device_kind


def batch_shards(mesh: Mesh | AbstractMesh) -> int:
    """Return the number of shards that a mesh splits a batch into.

    Example:
      >>> batch_shards(jax.sharding.AbstractMesh((1, 4, 2, 3, 1), AXES))  # data 4, fsdp 2, tensor 3
      8
    """
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def padded_batch_size(mesh: Mesh, count: int) -> int:
    """Return the smallest batch size that is at least `count` and divides evenly over a mesh.

    Example:
      >>> padded_batch_size(jax.sharding.AbstractMesh((1, 4, 1, 1, 1), AXES), count=5)
      8
    """
    shards = batch_shards(mesh)
    return max(-(-count // shards), 1) * shards


def check_batch_size(mesh: Mesh, name: str, batch_size: int) -> None:
    """Check that a batch divides evenly over the mesh's batch axes.

    Args:
      mesh: the mesh.
      name: the flag or config field that sets the batch size, for the error message.
      batch_size: the global batch size.

    Raises:
      UserError: it doesn't.

    Example:
      >>> mesh = jax.sharding.AbstractMesh((1, 4, 1, 1, 1), AXES)
      >>> check_batch_size(mesh, "--batch_size", 8)
    """
    shards = batch_shards(mesh)
    if batch_size < 1 or batch_size % shards:
        raise UserError(
            f"{name}={batch_size} does not divide over the mesh: make it a multiple of {shards} "
            f"(the product of config.mesh.{{{','.join(BATCH_AXES)}}})"
        )

"""TPU topologies to compile for, from libtpu; no TPU is needed."""

import dataclasses
import glob
import os
import re
from importlib.util import find_spec

import jax
from jax.experimental import topologies

from tp_jax.messages.errors import UserError
from tp_jax.parallel.chips import Chip, find_chip

EXAMPLES = "v4:4x4x4, v5e:4x4, v5p:4x4x4 or v6e:8x8"
# Values that libtpu queries from the metadata server of a TPU VM. Without one it would wait.
NO_TPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
    "TPU_LOG_DIR": "disabled",
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """The chips to compile for.

    Attributes:
      name: libtpu's name of one slice, such as "v5e:4x4".
      slices: number of slices.
      devices: the devices of all slices, one per chip.
      chip: the specification of each chip.
    """

    name: str
    slices: int
    devices: tuple[jax.Device, ...]
    chip: Chip


def open_topology(name: str, slices: int = 1) -> Topology:
    """Describe TPU slices for the compiler, without connecting to a TPU.

    Args:
      name: KIND:SHAPE of one slice, the shape in chips, such as "v5e:4x4".
      slices: number of such slices, connected by the data-centre network.

    Raises:
      UserError: libtpu isn't installed or doesn't know the topology, or the chip's specification
        is missing in `tp_jax/parallel/chips.py`.
    """
    if slices < 1:
        raise UserError(f"--slices={slices}: must be 1 or more")
    match = re.fullmatch(r"(v\d+[a-z]*):(\d+(?:x\d+)*)", name)
    if not match:
        raise UserError(f"--topology={name}: give KIND:SHAPE in chips, such as {EXAMPLES}")
    if find_spec("libtpu") is None:
        raise UserError("compiling for a TPU needs libtpu (but no TPU): pip install -e '.[tpu]'")
    if not glob.glob("/dev/accel*") and not glob.glob("/dev/vfio/[0-9]*"):
        os.environ.update(NO_TPU_ENVIRONMENT)
    # This machine's own accelerator, if any, isn't used.
    jax.config.update("jax_platforms", "cpu")
    options = {"num_slices": slices} if slices > 1 else {}
    if match[1] == "v4":
        # Megacore: both cores of a chip are one device, as on a v4 VM. By default each core is one.
        sides = [int(side) for side in match[2].split("x")]
        if len(sides) != 3:
            raise UserError(f"--topology={name}: a v4 slice has three sides, such as v4:4x4x4")
        options = dict(
            chip_config_name="megacore",
            chips_per_host_bounds=(2, 2, 1),
            num_slices=slices,
            wrap=(all(side % 4 == 0 for side in sides),) * 3,
        )
    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].removeprefix("INVALID_ARGUMENT: ")
        raise UserError(f"--topology={name}: {reason}; give one such as {EXAMPLES}") from error
    kind = described.devices[0].device_kind
    chip = find_chip(kind)
    if chip is None:
        raise UserError(
            f"--topology={name}: tp_jax/parallel/chips.py has no specification of {kind}; add one"
        )
    return Topology(name, slices, tuple(described.devices), chip)

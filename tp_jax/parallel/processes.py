"""Many processes: joining them at the start, and letting the first one decide or act for all."""

import glob
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from tp_jax.messages.errors import TrainingError, UserError

# Set by hand, all three, where nothing tells jax who the others are.
ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
# Of which each holds the number of tasks of a job: SLURM, Open MPI.
TASKS = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")
# A dead process is noticed after so many seconds.
HEARTBEAT = 30


def join_processes() -> None:
    """Joins the other processes of the job, if there are others; before anything is computed.

    On TPU hosts, under SLURM and under Open MPI jax finds out by itself who they are; elsewhere
    JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID say so.
    JAX_NUM_PROCESSES=1 alone keeps a process to itself.

    Raises:
      TrainingError: they can't be joined. Going on alone would be many runs instead of one.
    """
    given = [name for name in (ADDRESS, COUNT, INDEX) if os.environ.get(name)]
    if given == [COUNT] and os.environ[COUNT] == "1":
        return
    arguments: dict[str, Any] = {}
    if given:
        missing = {ADDRESS, COUNT, INDEX} - set(given)
        if missing:
            raise TrainingError(f"{', '.join(given)} is set, but not {', '.join(sorted(missing))}")
        try:
            arguments = dict(
                coordinator_address=os.environ[ADDRESS],
                num_processes=int(os.environ[COUNT]),
                process_id=int(os.environ[INDEX]),
            )
        except ValueError as error:
            raise TrainingError(f"{COUNT} and {INDEX} must be whole numbers: {error}") from error
    elif not (_on_tpu_host() or any(int(os.environ.get(name) or 1) > 1 for name in TASKS)):
        return
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT, **arguments)
    except (RuntimeError, ValueError, OSError) as error:
        raise TrainingError(
            f"the processes of this job can't be joined: {error}; start all of them again, or set "
            f"{COUNT}=1 for a process that is alone"
        ) from error


def broadcast_from_first(value: int) -> int:
    """What the first process has for this number; all processes ask together."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def run_on_first(act: Callable[[], None]) -> None:
    """Lets the first process act, while all wait; where it refuses, all do.

    Raises:
      UserError: of the first process; the others are told that it refused.
    """
    refused = None
    if jax.process_index() == 0:
        try:
            act()
        except UserError as error:
            refused = error
    if broadcast_from_first(refused is not None):
        raise refused or UserError("the first process refused: see what it says")


def _on_tpu_host() -> bool:
    platforms = os.environ.get("JAX_PLATFORMS", "")
    return "cpu" not in platforms and bool(
        glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")
    )

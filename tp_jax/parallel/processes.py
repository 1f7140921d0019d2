"""Multi-process jobs: connecting the processes, and work that only the first process does."""

import glob
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from tp_jax.messages.errors import TrainingError, UserError

# The user sets all three where jax can't detect the cluster.
ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
# Variables with the number of tasks of a job, under SLURM and under Open MPI.
TASK_COUNTS = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")
# Seconds without a heartbeat after which a process counts as dead.
HEARTBEAT_SECONDS = 30


def join_processes() -> None:
    """Initialize `jax.distributed` if the job has several processes. Call before any computation.

    On TPU hosts, under SLURM and under Open MPI, jax detects the cluster. Elsewhere set
    JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID. With
    JAX_NUM_PROCESSES=1 and neither of the others, the process runs by itself.

    Raises:
      TrainingError: the variables are incomplete or wrong, or the processes can't be connected.
        Continuing without them would start one separate run per process.
    """
    given = [name for name in (ADDRESS, COUNT, INDEX) if os.environ.get(name)]
    if given == [COUNT] and os.environ[COUNT] == "1":
        return
    arguments: dict[str, Any] = {}
    if given:
        missing = {ADDRESS, COUNT, INDEX} - set(given)
        if missing:
            raise TrainingError(
                f"{', '.join(given)} is set, but not {', '.join(sorted(missing))}: set all three"
            )
        try:
            arguments = dict(
                coordinator_address=os.environ[ADDRESS],
                num_processes=int(os.environ[COUNT]),
                process_id=int(os.environ[INDEX]),
            )
        except ValueError as error:
            raise TrainingError(f"{COUNT} and {INDEX} must be whole numbers: {error}") from error
    elif not (_on_tpu_host() or any(int(os.environ.get(name) or 1) > 1 for name in TASK_COUNTS)):
        return
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT_SECONDS, **arguments)
    except (RuntimeError, ValueError, OSError) as error:
        raise TrainingError(
            f"the processes of this job can't be connected: {error}; start all of them again, or "
            f"set {COUNT}=1 to run this process by itself"
        ) from error


def broadcast_from_first(value: int) -> int:
    """Return the first process's value, on all processes. All processes must call it."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def run_on_first(act: Callable[[], None]) -> None:
    """Call a function on the first process only, while the others wait. All processes must call it.

    Raises:
      UserError: the function raised it on the first process. The other processes raise one too.
    """
    error_of_first = None
    if jax.process_index() == 0:
        try:
            act()
        except UserError as error:
            error_of_first = error
    if broadcast_from_first(error_of_first is not None):
        raise error_of_first or UserError("the first process reported an error: see its log")


def _on_tpu_host() -> bool:
    platforms = os.environ.get("JAX_PLATFORMS", "")
    return "cpu" not in platforms and bool(
        glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")
    )

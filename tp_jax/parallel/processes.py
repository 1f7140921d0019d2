"""Multi-process jobs: connecting the processes, and work that only the first process does."""

import contextlib
import glob
import os
import sys
import threading
import time
from collections.abc import Callable, Generator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from tp_jax.files.atomic import disk_error
from tp_jax.messages.errors import TrainingError, UserError, WriteError

# The user sets all three where jax can't detect the cluster.
ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
# The variables with the number of tasks of a job and with the task's index, under SLURM and under
# Open MPI. A SLURM step may have fewer tasks than its job.
TASKS = (
    (("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"), "SLURM_PROCID"),
    (("OMPI_COMM_WORLD_SIZE",), "OMPI_COMM_WORLD_RANK"),
)
# Seconds without a heartbeat after which a process counts as dead.
HEARTBEAT_SECONDS = 30
# Seconds to wait for the other processes of the job, until the first line about it, and between the
# next ones.
CONNECT_SECONDS, FIRST_REPORT_SECONDS, REPORT_SECONDS = 300, 1, 30
ALONE = f"set {COUNT}=1 to run this process by itself"
# Errors of the first process that `run_on_first` raises on all processes.
_SHARED_ERRORS = (UserError, TrainingError, WriteError)


def join_processes() -> None:
    """Initialize `jax.distributed` if the job has several processes. Call before any computation.

    On TPU hosts, under SLURM and under Open MPI, jax detects the cluster. Elsewhere set
    JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID. With
    JAX_NUM_PROCESSES=1 and neither of the others, the process runs by itself. While it waits for
    the other processes, it says so; after `CONNECT_SECONDS` it exits with code 1.

    Raises:
      UserError: SLURM allotted several tasks, but this process wasn't started by srun.
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
        count, index = _whole_number(COUNT), _whole_number(INDEX)
        if not os.environ[ADDRESS].rpartition(":")[2].isdecimal():
            raise TrainingError(f"{ADDRESS}={os.environ[ADDRESS]}: give host:port of process 0")
        arguments = dict(
            coordinator_address=os.environ[ADDRESS], num_processes=count, process_id=index
        )
        waiting = f"{count} processes ({COUNT}; this is process {index} of {os.environ[ADDRESS]})"
    elif tasks := _find_tasks():
        waiting = tasks
    elif _on_tpu_host():
        waiting = "all hosts of the TPU slice"
    else:
        return
    try:
        with _reported(waiting):
            # jax would abort the process; `_reported` ends it with a message before.
            jax.distributed.initialize(
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
                initialization_timeout=2 * CONNECT_SECONDS,
                **arguments,
            )
    except (RuntimeError, ValueError, OSError) as error:
        raise TrainingError(
            f"the processes of this job can't be connected: {error}; start all of them again, or "
            f"{ALONE}"
        ) from error


def _report(text: str) -> None:
    # `progress.say` would ask jax for the process's index, which isn't known yet.
    print(text, file=sys.stderr, flush=True)


def _find_tasks() -> str | None:
    """Return a description of the tasks that SLURM or Open MPI started; None if there is only one.

    Raises:
      UserError: SLURM allotted several tasks, but this process wasn't started by srun.
      TrainingError: a variable isn't a whole number.
    """
    for counts, index in TASKS:
        count = next((name for name in counts if os.environ.get(name)), None)
        if count is None or _whole_number(count) < 2:
            continue
        if count == "SLURM_NTASKS" and not {"SLURM_STEP_ID", "SLURM_STEPID"} & set(os.environ):
            raise UserError(
                f"{count}={os.environ[count]}, but this process wasn't started by srun, so the "
                f"other tasks would never come: start it with srun python -m …, or {ALONE}"
            )
        return f"{os.environ[count]} tasks ({count}; this is task {os.environ.get(index, '?')})"
    return None


def _whole_number(name: str) -> int:
    """Return the value of an environment variable; raise a TrainingError if it isn't an integer."""
    try:
        return int(os.environ[name])
    except ValueError as error:
        raise TrainingError(
            f"{name}={os.environ[name]!r}: number and index of processes must be whole numbers"
        ) from error


@contextlib.contextmanager
def _reported(waiting: str) -> Generator[None, None, None]:
    """Say from a thread what the block waits for, and end the process when it waits too long.

    Args:
      waiting: who is waited for.
    """
    done, start = threading.Event(), time.monotonic()

    def report() -> None:
        pause = FIRST_REPORT_SECONDS
        while not done.wait(pause) and (seconds := time.monotonic() - start) < CONNECT_SECONDS:
            _report(
                f"waiting for {waiting} to connect, {seconds:.0f} of at most {CONNECT_SECONDS} s; "
                f"{ALONE}"
            )
            pause = min(REPORT_SECONDS, CONNECT_SECONDS - seconds)
        if not done.is_set():
            _report(f"error: {waiting} haven't all started within {CONNECT_SECONDS} s: {ALONE}")
            # The block can't be interrupted, because it runs in jax's C++ code.
            os._exit(1)

    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def broadcast_from_first(value: int) -> int:
    """Return the first process's value, on all processes. All processes must call it."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def run_on_first(act: Callable[[], None]) -> None:
    """Call a function on the first process only, while the others wait. All processes must call it.

    Raises:
      UserError, TrainingError or WriteError: the function raised it on the first process, or the
        first process has a full or read-only disk. The other processes raise an error of the same
        class.
    """
    error_of_first, kind = None, 0
    if jax.process_index() == 0:
        try:
            act()
        except (*_SHARED_ERRORS, OSError) as raised:
            error = disk_error(raised) if isinstance(raised, OSError) else raised
            matches = [shared in type(error).__mro__ for shared in _SHARED_ERRORS]
            error_of_first, kind = error, 1 + matches.index(True)
    kind = broadcast_from_first(kind)
    if kind:
        other = _SHARED_ERRORS[kind - 1]("the first process reported an error: see its log")
        raise error_of_first or other


def _on_tpu_host() -> bool:
    platforms = os.environ.get("JAX_PLATFORMS", "")
    return "cpu" not in platforms and bool(
        glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")
    )

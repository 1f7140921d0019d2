"""Settings of jax and of the process that make commands start and run faster.

Commands apply them when they start. The library doesn't: a program that uses it has settings of its
own.
"""

import contextlib
import ctypes
import glob
import hashlib
import os
import pathlib
import platform
import re
import sys
import warnings
from typing import Any

# Largest size in bytes of all compiled programs; the oldest files beyond it are removed.
MAX_CACHE_BYTES = 1 << 30
# Device files of TPUs and of NVIDIA's and AMD's GPUs.
ACCELERATORS = ("/dev/accel*", "/dev/vfio/[0-9]*", "/dev/nvidia[0-9]*", "/dev/kfd")
# Parameters of glibc's mallopt, from malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def cache_folder() -> pathlib.Path:
    """Return the folder for compiled programs, which depends on the CPU of this machine.

    It is in the user's cache folder: workdirs may be buckets, and runs share many programs.
    Machines that share this folder may have different CPUs, and a program compiled for one of them
    may use instructions that another lacks.
    """
    base = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    cpu = hashlib.sha256(_cpu().encode()).hexdigest()[:16]
    return base / "tp_jax" / "compiled" / cpu


def _cpu() -> str:
    """Return the model of the CPU and the names of its instruction sets."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = [platform.processor()]
    # x86 and ARM have different names; the other lines differ between cores or change.
    kept = {line for line in lines if re.match(r"model name|flags|Features|CPU part", line)}
    return "\n".join([platform.machine(), *sorted(kept or lines[:1])])


def keep_compiled_programs() -> None:
    """Turn on jax's persistent compilation cache, unless the user chose a folder or no cache.

    Call it before the first compilation, and after the processes of a job are connected.
    A folder that can't be written to leaves it off. A job of several processes does as well: only
    its first process would find its programs again. There JAX_COMPILATION_CACHE_DIR can name a
    folder that all hosts share.
    """
    import jax

    config: Any = jax.config  # Its fields have no types.
    if config.jax_compilation_cache_dir or not config.jax_enable_compilation_cache:
        return
    if jax.distributed.is_initialized():
        return
    try:
        folder = cache_folder()
        # jax trusts what it finds there.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: there is no home folder.
        return
    if not os.access(folder, os.W_OK | os.X_OK):
        return
    _remove_oldest(folder.parent, MAX_CACHE_BYTES)
    config.update("jax_compilation_cache_dir", str(folder))
    config.update("jax_persistent_cache_min_compile_time_secs", 0)
    # Programs that can't be read or written, as on a full disk, are compiled as without a cache.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache entry")


def _remove_oldest(folder: pathlib.Path, limit: int) -> None:
    """Remove the oldest files of a folder and its subfolders beyond `limit` bytes."""
    with contextlib.suppress(OSError):  # Another process may remove files at the same time.
        files = [(path.stat(), path) for path in folder.rglob("*") if path.is_file()]
        size = 0
        for stat, path in sorted(files, key=lambda file: file[0].st_mtime, reverse=True):
            size += stat.st_size
            if size > limit:
                path.unlink(missing_ok=True)


def keep_freed_memory() -> None:
    """Make glibc keep freed memory where the CPU computes.

    Each run of a compiled program allocates its buffers anew. By default, glibc returns large ones
    to the system when they are freed, which then has to fill every page with zeros again.

    Call it before numpy and jax are imported: the arenas of threads that run already would stay.
    """
    if sys.platform != "linux" or not _computes_on_cpu():
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:  # Other C libraries have none.
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, -1)
        # The arenas of threads map large blocks all the same, so all threads share the main one.
        mallopt(_ARENA_MAX, 1)


def _computes_on_cpu() -> bool:
    if os.environ.get("JAX_PLATFORMS", "") == "cpu":
        return True
    return not any(glob.glob(pattern) for pattern in ACCELERATORS)

"""What a measurement was taken on: device, versions, commit."""

import datetime
import importlib.metadata
import os
import pathlib
import platform
import subprocess
from typing import Any

import jax

import tp_jax

PACKAGES = ("jax", "jaxlib", "flax", "torch", "diffusers")


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def describe_machine() -> dict[str, Any]:
    """Return device, cores, versions and commit, as JSON.

    Packages that aren't installed, and the commit of an installation without git, are left out.
    """
    versions = {"python": platform.python_version(), "tp_jax": tp_jax.__version__}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    device = jax.devices()[0]
    kind = device.device_kind if device.platform != "cpu" else _cpu_name()
    return {
        "device": kind,
        "devices": jax.device_count(),
        "cores": cores(),
        "versions": versions,
        **_commit(),
    }


def today() -> str:
    """Return the date in UTC, such as "2026-01-31"."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def _cpu_name() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names and names[0] != "unknown" else platform.machine()


def _commit() -> dict[str, Any]:
    """Return the commit of the checkout, and whether files of it have changed since."""
    folder = pathlib.Path(tp_jax.__file__).parent
    answers = []
    # The first fails for an installation inside the checkout of another project.
    tracked = ["ls-files", "--error-unmatch", "__init__.py"]
    for command in (tracked, ["rev-parse", "--short=10", "HEAD"], ["status", "--porcelain", "."]):
        try:
            done = subprocess.run(
                ["git", *command], cwd=folder, capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError):
            return {}
        answers.append(done.stdout.strip())
    return {"commit": answers[1], "changed": bool(answers[2])}

"""Training (20 updates) and sampling give the same numbers on every mesh and process count."""

import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest
from mesh_training import MESHES

TESTS = pathlib.Path(__file__).parent


def train(folder, processes, devices, cases):
    """Train the cases on `processes` processes of `devices` devices each.

    Returns:
      {case: (losses [20, 2], samples)}; a row of losses is the loss and the gradient norm.
    """
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    path = os.pathsep.join([str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    running = []
    for index in range(processes):
        environment = os.environ | {"PYTHONPATH": path}
        if processes > 1:
            environment |= {
                "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
                "JAX_NUM_PROCESSES": str(processes),
                "JAX_PROCESS_ID": str(index),
            }
        command = [sys.executable, TESTS / "mesh_training.py", folder / "out.npz", str(devices)]
        running.append(subprocess.Popen([*command, *cases], env=environment))
    assert [process.wait(timeout=1800) for process in running] == [0] * processes
    with np.load(folder / "out.npz") as file:
        return {case: (file[f"{case}/losses"], file[f"{case}/samples"]) for case in cases}


def assert_equal_to_one_device(found, wanted):
    for case, (losses, samples) in found.items():
        wanted_losses, wanted_samples = wanted[f"{case.split(':')[0]}:one"]
        np.testing.assert_allclose(losses, wanted_losses, rtol=1e-5, err_msg=case)
        scale = np.abs(wanted_samples).max()
        np.testing.assert_allclose(samples, wanted_samples, atol=1e-5 * scale, err_msg=case)


# The meshes of the kinds that are not trained on all of them.
FEW_MESHES = {"own": ["one", "mixed"], "ponder": ["one", "mixed"]}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dit", "mmdit", "own", "ponder"])
def test_training_on_meshes_equals_one_device(kind, tmp_path):
    found = train(tmp_path, 1, 8, [f"{kind}:{name}" for name in FEW_MESHES.get(kind, MESHES)])
    losses, samples = found[f"{kind}:one"]
    assert losses.shape == (20, 2) and len(np.unique(losses[:, 0])) == 20
    assert samples.shape[:3] == (8, 8, 8) and samples.std() > 0.1
    assert_equal_to_one_device(found, found)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "processes", "mesh"),
    [("dit", 2, "data"), ("mmdit", 2, "expert"), ("dit", 4, "mixed")],
)
def test_training_on_processes_equals_one_device(kind, processes, mesh, tmp_path):
    """With TP_JAX_MESHES=all, each has five meshes instead of one."""
    wanted = train(tmp_path, 1, 1, [f"{kind}:one"])
    names = [mesh]
    if os.environ.get("TP_JAX_MESHES") == "all":
        names = ["data", "fsdp", "tensor", "expert", "mixed"]
    cases = [f"{kind}:{name}" for name in names]
    assert_equal_to_one_device(train(tmp_path, processes, 8 // processes, cases), wanted)


def check_dispatches(examples, cases):
    """Run mesh_dispatch.py, which compares with a plain loop, on cases "EXPERTS:AXIS_SIZE"."""
    path = os.pathsep.join([str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, TESTS / "mesh_dispatch.py", str(examples), *cases]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    assert done.stdout.decode().split() == cases


def test_every_dispatch_on_a_mesh_equals_a_plain_loop():
    check_dispatches(10, ["5:4", "8:8"])


@pytest.mark.slow
def test_every_dispatch_on_every_mesh_equals_a_plain_loop():
    cases = [f"{experts}:{axis}" for experts in (1, 2, 3, 16, 33, 64) for axis in (2, 4, 8)]
    cases.append("256:8")
    check_dispatches(25, cases)

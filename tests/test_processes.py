"""Training on several processes: same losses and samples as one; all end when one dies."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import run_entry
from resuming import STEPS, TESTS, read_checkpoint
from virtual_devices import xla_flags

from tp_jax.parallel import processes

CONFIG = """
import resuming

{lines}

def get_config():
    return resuming.small_config()
"""
NO_WRITER = "resuming.metrics.TensorBoardWriter = lambda workdir: resuming.FakeWriter()"
SLOW = f"{NO_WRITER}\nresuming.slow_down(0.5)"


def free_port():
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


class Job:
    """Processes of one job, started together, each with the same number of virtual devices."""

    def __init__(self, folder, processes, devices, lines=NO_WRITER):
        self.folder, self.workdir = folder, folder / "run"
        self._processes, self._devices = processes, devices
        path = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
        flags = xla_flags(devices)
        self._environment = os.environ | {"PYTHONPATH": path, "XLA_FLAGS": flags}
        (folder / "config.py").write_text(CONFIG.format(lines=lines))

    def start(self, module="main", *flags):
        command = [sys.executable, "-m", f"tp_jax.{module}", "--workdir=run", *flags]
        port, running = free_port(), []
        for index in range(self._processes):
            environment = self._environment | {
                "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
                "JAX_NUM_PROCESSES": str(self._processes),
                "JAX_PROCESS_ID": str(index),
            }
            with (self.folder / f"log_{index}").open("w") as file:
                running.append(
                    subprocess.Popen(command, cwd=self.folder, env=environment, stderr=file)
                )
        return running

    def log(self, index=0):
        return (self.folder / f"log_{index}").read_text()

    def wait_for(self, text, running):
        deadline = time.monotonic() + 300
        while text not in self.log():
            assert time.monotonic() < deadline, self.log()
            assert all(process.poll() is None for process in running), self.log()
            time.sleep(0.02)

    def end(self, running, timeout=300):
        try:
            return [process.wait(timeout=timeout) for process in running]
        finally:
            for process in running:
                process.kill()

    def run(self, module="main", *flags):
        codes = self.end(self.start(module, *flags))
        assert codes == [0] * self._processes, self.log()
        return self.log()


def losses_of(log):
    """Return {train step: loss} from the table in the log."""
    found = re.findall(r"^ +(\d+)/\d+ .*? (\d+\.\d{4}) ", log, re.MULTILINE)
    return {int(step): float(loss) for step, loss in found}


def assert_close(workdir, wanted):
    """Compare up to float32 rounding, because the number of devices changes the order of sums."""
    (found, found_data), (wanted, wanted_data) = (
        read_checkpoint(workdir, STEPS),
        read_checkpoint(wanted, STEPS),
    )
    assert found_data == wanted_data
    for name, array in wanted.items():
        if "opt_state" in name:
            continue
        ours = found[name]
        if name.endswith("qkv/bias"):
            # Softmax ignores the bias of the keys: its gradient is rounding error, which Adam's
            # normalization makes large. Compare only the biases of queries and values.
            ours, array = (leaf.take([0, 2], axis=-2) for leaf in (ours, array))
        np.testing.assert_allclose(ours, array, rtol=2e-4, atol=2e-5, err_msg=name)


@pytest.mark.slow
def test_two_processes_train_and_sample_as_one(uninterrupted, tmp_path):
    workdir, losses = uninterrupted
    job = Job(tmp_path, 2, 2)
    log = job.run("main", "--config=config.py", "--config.train.samples=3")
    assert "4 × cpu, mesh slices 1 × data 4" in log
    pictures = sorted(path.name for path in (job.workdir / "samples").iterdir())
    assert pictures == [f"{STEPS:08d}.png"]
    found = losses_of(log)
    assert found.keys() == losses.keys()
    # Losses are logged with four digits.
    assert all(abs(found[step] - loss) < 2e-4 for step, loss in losses.items())
    assert_close(job.workdir, workdir)
    assert "step" not in job.log(1), "only process 0 may log training steps"

    job.run("sample", "--out=samples.npz", "--num=6", "--batch_size=4")
    code, _, errors = run_entry(
        "sample", f"--workdir={job.workdir}", f"--out={tmp_path / 'alone.npz'}", "--num=6",
        "--batch_size=4",
    )  # fmt: skip
    assert code == 0, errors
    images = [np.load(tmp_path / name)["arr_0"] for name in ("samples.npz", "alone.npz")]
    np.testing.assert_allclose(*(image.astype(int) for image in images), atol=1)


@pytest.mark.slow
def test_two_processes_analyse_as_one(uninterrupted, tmp_path):
    flags = [f"--workdir={uninterrupted[0]}", "--num=8", "--json"]
    Job(tmp_path, 2, 2).run("analyze", *flags, "--out=two")
    code, _, errors = run_entry("analyze", *flags, f"--out={tmp_path / 'one'}")
    assert code == 0, errors
    documents = ((tmp_path / name / "analysis.json").read_text() for name in ("two", "one"))
    assert_documents_close(*map(json.loads, documents))


def assert_documents_close(found, wanted, where=""):
    """Compare JSON documents, whose numbers may differ by rounding."""
    assert type(found) is type(wanted), where
    if isinstance(found, dict):
        assert found.keys() == wanted.keys(), where
        for key in found:
            assert_documents_close(found[key], wanted[key], f"{where}.{key}")
    elif isinstance(found, list):
        assert len(found) == len(wanted), where
        for i, pair in enumerate(zip(found, wanted, strict=True)):
            assert_documents_close(*pair, f"{where}[{i}]")
    elif isinstance(found, float):
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3, err_msg=where)
    else:
        assert found == wanted, where


@pytest.mark.slow
def test_two_processes_validate_as_one(tmp_path):
    job, fields = Job(tmp_path, 2, 2), {"fraction": 0.1, "num": 6, "times": 2}
    fields |= {"every_steps": 4, "batch_size": 4}
    flags = [f"--config.validation.{name}={value}" for name, value in fields.items()]
    log = job.run("main", "--config=config.py", "--config.train.steps=4", *flags)
    assert "step 4: validation loss" in log and "validation loss" not in job.log(1)
    in_training = json.loads((job.workdir / "validation" / "00000004.json").read_text())
    job.run("evaluate", "--suite=validation", "--batch_size=4", "--out=two")
    arguments = ["--suite=validation", f"--workdir={job.workdir}", f"--out={tmp_path / 'one'}"]
    code, _, errors = run_entry("evaluate", *arguments)
    assert code == 0, errors
    two, one = (json.loads((tmp_path / n / "scores.json").read_text()) for n in ("two", "one"))
    assert len(one["losses"]) == 6 and one["digest"] == two["digest"] == in_training["digest"]
    assert two["losses"] == in_training["losses"]
    np.testing.assert_allclose(two["losses"], one["losses"], rtol=1e-5)


@pytest.mark.slow
def test_sigterm_to_one_process_saves_and_ends_all_at_the_same_step(uninterrupted, tmp_path):
    job = Job(tmp_path, 2, 2, SLOW)
    running = job.start("main", "--config=config.py", "--config.checkpoint.every_steps=100")
    job.wait_for(f" 2/{STEPS} ", running)
    running[1].send_signal(signal.SIGTERM)
    assert job.end(running, timeout=90) == [0, 0], job.log() + job.log(1)
    step = int(re.search(r"stopped by SIGTERM after step (\d+), which is saved", job.log())[1])
    assert 2 <= step < STEPS and (job.workdir / "checkpoints" / str(step)).is_dir()

    # Resume with another number of processes and devices; the order of the data must not change.
    alone = Job(tmp_path, 1, 2)
    assert f"resuming from the checkpoint of train step {step}" in alone.run(
        "main", "--config=config.py"
    )
    assert_close(job.workdir, uninterrupted[0])


@pytest.mark.slow
def test_when_one_process_is_killed_the_others_end_and_the_job_resumes(uninterrupted, tmp_path):
    job = Job(tmp_path, 2, 2, SLOW)
    running = job.start("main", "--config=config.py")
    job.wait_for(f" 5/{STEPS} ", running)
    running[1].kill()
    started = time.monotonic()
    codes = job.end(running, timeout=60)
    print(f"\nthe other process ended after {time.monotonic() - started:.0f} s")
    assert codes[0] not in (0, None) and codes[1] == -signal.SIGKILL
    assert "another task died" in job.log()

    assert "resuming from the checkpoint of" in job.run("main", "--config=config.py")
    assert_close(job.workdir, uninterrupted[0])


@pytest.mark.parametrize(
    ("environment", "match"),
    [
        ({"JAX_COORDINATOR_ADDRESS": "localhost:1"}, "is set, but not JAX_NUM_PROCESSES, JAX_PROC"),
        (
            {
                "JAX_COORDINATOR_ADDRESS": "localhost:1",
                "JAX_NUM_PROCESSES": "two",
                "JAX_PROCESS_ID": "0",
            },
            "must be whole numbers",
        ),
        (
            {
                "JAX_COORDINATOR_ADDRESS": "localhost",
                "JAX_NUM_PROCESSES": "2",
                "JAX_PROCESS_ID": "0",
            },
            "JAX_COORDINATOR_ADDRESS=localhost: give host:port of process 0",
        ),
        ({"SLURM_NTASKS": "two"}, "SLURM_NTASKS='two': number and index of processes must be"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "can't be connected.* set JAX_NUM_PROCESSES=1 to run this"),
    ],
)
def test_incomplete_process_settings_are_refused(environment, match, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    code, _, errors = run_entry("main", "--config=configs/quickstart.py", "--workdir=y")
    assert code == 1 and re.search(match, errors), errors


@pytest.mark.parametrize("step", [{}, {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1"}])
def test_slurm_without_srun_is_refused_and_a_step_of_one_task_runs_alone(step, monkeypatch):
    variables = {
        "SLURM_JOB_ID": "7",
        "SLURM_NTASKS": "4",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
    }
    for name, value in (variables | {"SLURM_STEP_NODELIST": "localhost"} | step).items():
        monkeypatch.setenv(name, value)
    code, _, errors = run_entry(
        "main", "--config=configs/quickstart.py", "--workdir=y", "--config.model.patch=7"
    )
    assert code == 2
    expected = (
        "config.model.patch=7"
        if step
        else "SLURM_NTASKS=4, but .* wasn't started by srun.* or set JAX_NUM"
    )
    assert re.search(expected, errors), errors


def test_a_process_says_whom_it_waits_for_and_ends_when_they_do_not_come(monkeypatch, capfd):
    codes = []
    monkeypatch.setattr(processes, "FIRST_REPORT_SECONDS", 0.01)
    monkeypatch.setattr(processes, "REPORT_SECONDS", 0.02)
    monkeypatch.setattr(processes, "CONNECT_SECONDS", 0.2)
    monkeypatch.setattr(os, "_exit", codes.append)
    with processes._reported("2 tasks (SLURM_NTASKS; this is task 0)"):
        deadline = time.monotonic() + 30
        while not codes and time.monotonic() < deadline:
            time.sleep(0.01)
    lines = capfd.readouterr().err.splitlines()
    assert codes == [1]
    alone = "set JAX_NUM_PROCESSES=1 to run this process by itself"
    assert "waiting for 2 tasks (SLURM_NTASKS; this is task 0) to connect" in lines[0]
    assert alone in lines[0] and alone in lines[-1]
    assert lines[-1].startswith("error: 2 tasks (SLURM_NTASKS; this is task 0) haven't all started")

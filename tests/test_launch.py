"""The launch scripts run exactly the commands that they print, and handle interruptions."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import time

import pytest
from fake_machine import (
    CLOUD,
    DESCRIBE_REQUEST,
    FLAGS,
    GCLOUD,
    PROGRAM,
    RECORD,
    ROOT,
    TPU_FLAGS,
    TRAINING,
    wait_until,
)


@pytest.mark.parametrize(
    ("kind", "image"),
    [
        ("v4-32", "tpu-ubuntu2204-base"),
        ("v5litepod-16", "v2-alpha-tpuv5-lite"),
        ("v5p-128", "v2-alpha-tpuv5"),
        ("v6e-64", "v2-alpha-tpuv6e"),
    ],
)
def test_each_tpu_generation_gets_its_image(machine, kind, image):
    kind = f"--accelerator-type={kind}"
    create, _ = machine.run("tpu_vm.sh", "create", *TPU_FLAGS, kind, "--spot", "--dry-run")
    made = [*GCLOUD, "tpu-vm", "create", "n", "--zone=z", kind, f"--version={image}", "--spot"]
    assert create == [made]
    queue, _ = machine.run("tpu_vm.sh", "queue", *TPU_FLAGS, kind, "--project=p", "--dry-run")
    place = ["n", "--node-id=n", "--zone=z", "--project=p", kind]
    assert queue == [[*GCLOUD, "queued-resources", "create", *place, f"--runtime-version={image}"]]


def test_commands_for_tpu_vms(machine):
    on = [*GCLOUD, "tpu-vm", "ssh", "n", "--zone=z"]
    start = ["bash", "launch/worker.sh", "start", "main", *TRAINING, *FLAGS]
    expected = {
        "log": [[*on, "--worker=0", "--command=cd tp_jax && tail -n 100 -F runs/worker/log"]],
        "stop": [[*on, "--worker=all", "--command=cd tp_jax && bash launch/worker.sh stop"]],
        "delete": [[*GCLOUD, "tpu-vm", "delete", "n", "--zone=z", "--quiet"]],
        "status": [
            DESCRIBE_REQUEST,
            [*GCLOUD, "tpu-vm", "describe", "n", "--zone=z", "--format=value(state)"],
            [*on, "--worker=0", "--command=cd tp_jax && bash launch/worker.sh status"],
        ],
    }
    for action, commands in expected.items():
        assert machine.run("tpu_vm.sh", action, *TPU_FLAGS, "--dry-run")[0] == commands, action
    queued, _ = machine.run("tpu_vm.sh", "delete", *TPU_FLAGS, "--queued", "--dry-run")
    gone = ["queued-resources", "delete", "n", "--zone=z", "--force", "--quiet"]
    assert queued == [[*GCLOUD, *gone]]
    ((*head, command),), _ = machine.run(
        "tpu_vm.sh", "run", *TPU_FLAGS, *TRAINING, "--dry-run", "--", *FLAGS
    )
    assert head == [*on, "--worker=all"]
    assert shlex.split(command.removeprefix("--command=")) == ["cd", "tp_jax", "&&", *start]


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("tpu_vm.sh", ["create", *TPU_FLAGS, "--accelerator-type=v6e-8"]),
        ("tpu_vm.sh", ["queue", *TPU_FLAGS, "--accelerator-type=v6e-8", "--spot"]),
        ("tpu_vm.sh", ["setup", *TPU_FLAGS]),
        ("tpu_vm.sh", ["setup", *TPU_FLAGS, "--extras=text,convert"]),
        ("tpu_vm.sh", ["run", *TPU_FLAGS, *TRAINING, "--", *FLAGS]),
        ("tpu_vm.sh", ["status", *TPU_FLAGS]),
        ("tpu_vm.sh", ["log", *TPU_FLAGS]),
        ("tpu_vm.sh", ["stop", *TPU_FLAGS]),
        ("tpu_vm.sh", ["delete", *TPU_FLAGS, "--queued"]),
        ("xpk.sh", ["create", "--cluster=k", "--workload=w", "--tpu-type=v6e-64"]),
        ("xpk.sh", ["delete", "--cluster=k", "--workload=w"]),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_scripts_run_what_dry_run_prints(machine, script, arguments):
    if script == "xpk.sh" and arguments[0] == "create":
        arguments = [*arguments, "--docker-image=i", *TRAINING, "--", *FLAGS]
    at = arguments.index("--") if "--" in arguments else len(arguments)
    printed, _ = machine.run(script, *arguments[:at], "--dry-run", *arguments[at:])
    for name in ("gcloud", "xpk", "tar"):
        machine.add_program(name)
    assert machine.calls() == []
    _, announced = machine.run(script, *arguments)
    assert machine.calls() == printed
    assert [shlex.split(line.removeprefix("+ ")) for line in announced.splitlines()] == printed


def test_arguments_reach_the_workers_unchanged(machine):
    root = machine.checkout()
    machine.add_program("python", PROGRAM)
    machine.add_program("gcloud", '#!/usr/bin/env bash\nbash -c "${!##--command=}"\n')
    machine.run("tpu_vm.sh", "run", *TPU_FLAGS, *TRAINING, "--", *FLAGS)
    wait_until(machine.calls)
    assert machine.calls() == [["python", "-m", "tp_jax.main", *TRAINING, *FLAGS]]

    def status():
        return machine.run("worker.sh", "status", root=root)[0]

    assert status() == [["running"]]
    _, refusal = machine.run("worker.sh", "start", *TRAINING, root=root, code=2)
    assert refusal == "error: a run is already in progress here: end it with tpu_vm.sh stop\n"
    machine.run("tpu_vm.sh", "stop", *TPU_FLAGS)
    assert status() == [["stopped"]]
    for code, words in ((0, ["done"]), (2, ["failed", "2", "stopped"])):
        (root / "end").write_text(str(code))
        machine.run("tpu_vm.sh", "run", *TPU_FLAGS, *TRAINING)
        wait_until(lambda: status() != [["running"]])
        assert status()[0][: len(words)] == words[: 2 if code else 1]


@pytest.mark.parametrize(("entry", "status"), [("main", "stopped"), ("sample", "done")])
def test_training_is_done_only_if_its_log_ends_with_done(machine, entry, status):
    root = machine.checkout()
    machine.add_program("python", RECORD)
    machine.run("worker.sh", "start", entry, "--out=o", root=root)
    wait_until(lambda: machine.run("worker.sh", "status", root=root)[0] != [["running"]])
    assert machine.calls() == [["python", "-m", f"tp_jax.{entry}", "--out=o"]]
    assert machine.run("worker.sh", "status", root=root)[0] == [[status]]


def test_entry_killed_by_sigterm_has_status_stopped(machine):
    root = machine.checkout()
    machine.add_program("python", f"{RECORD}\nexec sleep 60\n")
    machine.run("worker.sh", "start", "prepare", root=root)
    wait_until(machine.calls)
    machine.run("worker.sh", "stop", root=root)
    assert machine.run("worker.sh", "status", root=root)[0] == [["stopped"]]


@pytest.mark.parametrize(
    ("entry", "options", "flags"),
    [
        ("prepare", TRAINING, ["--config.prepare.dir=a folder"]),
        ("sample", TRAINING[1:], ["--out=gs://bucket/some samples.npz", "--num=5"]),
    ],
    ids=["prepare", "sample"],
)
def test_launchers_run_other_entries(machine, entry, options, flags):
    program = [*options, *flags]
    options = [f"--entry={entry}", *options, "--dry-run", "--", *flags]
    ((*_, command),), _ = machine.run("tpu_vm.sh", "run", *TPU_FLAGS, *options)
    words = ["cd", "tp_jax", "&&", "bash", "launch/worker.sh", "start", entry, *program]
    assert shlex.split(command.removeprefix("--command=")) == words
    xpk = ["--cluster=k", "--workload=w", "--tpu-type=v6e-64", "--docker-image=i"]
    ((*_, command),), _ = machine.run("xpk.sh", "create", *xpk, *options)
    words = ["exec", "bash", "launch/worker.sh", "once", entry, *program]
    assert shlex.split(command.removeprefix("--command=")) == words
    (command, *_), _ = machine.run("slurm.sbatch", *options)
    assert command[-len(program) - 2 :] == ["-m", f"tp_jax.{entry}", *program]
    kind = "--accelerator-type=v6e-8"
    commands, _ = machine.run("babysit.sh", *TPU_FLAGS, kind, "--extras=text", *options)
    ssh = [command[-1].removeprefix("--command=") for command in commands]
    assert any(line.endswith("bash tp_jax/launch/worker.sh setup text") for line in ssh)
    words = ["cd", "tp_jax", "&&", "bash", "launch/worker.sh", "start", entry, *program]
    assert words in [shlex.split(line) for line in ssh if "worker.sh start" in line]


def test_run_whose_process_vanished_has_status_lost(machine):
    root = machine.checkout()
    assert machine.run("worker.sh", "status", root=root)[0] == [["none"]]
    machine.add_program("python", PROGRAM)
    machine.run("worker.sh", "start", root=root)
    pid = int((root / "runs" / "worker" / "pid").read_text())
    os.killpg(os.getpgid(pid), signal.SIGKILL)
    wait_until(lambda: machine.run("worker.sh", "status", root=root)[0] == [["lost"]])


@pytest.mark.parametrize(
    ("end", "code", "program"),
    [
        ("0", 0, PROGRAM),
        ("1", 1, PROGRAM),
        ("2", 2, PROGRAM),
        (None, 42, PROGRAM),
        (None, 42, f"{RECORD}\nexec sleep 60\n"),
    ],
    ids=["done", "failed", "refused", "stopped", "terminated"],
)
def test_exit_code_of_a_pod_tells_whether_to_restart_it(machine, end, code, program):
    root = machine.checkout()
    machine.add_program("python", program)
    if end:
        (root / "end").write_text(end)
    command = ["bash", root / "launch" / "worker.sh", "once", *TRAINING]
    with subprocess.Popen(command, env=machine.environment) as pod:
        wait_until(machine.calls)
        if not end:
            time.sleep(0.2)
            pod.terminate()
        assert pod.wait(20) == code


def test_xpk_passes_flags_unchanged(machine):
    where = ["--cluster=k", "--workload=w", "--tpu-type=v6e-64", "--num-slices=2", "--zone=z"]
    (printed,), _ = machine.run(
        "xpk.sh", "create", *where, "--docker-image=i", *TRAINING, "--dry-run", "--", *FLAGS
    )
    *head, command = printed
    assert " ".join(head) == (
        "xpk workload create --cluster=k --workload=w --zone=z --tpu-type=v6e-64 --num-slices=2 "
        "--docker-image=i --max-restarts=100 --restart-on-exit-codes=1"
    )
    once = ["exec", "bash", "launch/worker.sh", "once", "main", *TRAINING, *FLAGS]
    assert shlex.split(command.removeprefix("--command=")) == once
    (layered,), _ = machine.run(
        "xpk.sh", "create", *where, "--base-docker-image=b", *TRAINING, "--dry-run"
    )
    assert {"--base-docker-image=b", f"--script-dir={ROOT}"} < set(layered)


def babysit(machine, script, *arguments, code=0):
    """Run babysit.sh with these statuses of the run; return the main steps and stderr."""
    machine.add_program("gcloud", CLOUD)
    machine.add_program("tar")
    (machine.folder / "script").write_text("\n".join(script) + "\n")
    _, stderr = machine.run(
        "babysit.sh",
        *TPU_FLAGS,
        "--accelerator-type=v5litepod-16",
        *TRAINING,
        "--poll=0",
        *arguments,
        "--",
        *FLAGS,
        code=code,
    )
    calls = [" ".join(call) for call in machine.calls()]
    steps = "queued-resources create|queued-resources delete|scp|worker.sh start|worker.sh stop"
    return [found[0] for call in calls if (found := re.search(steps, call))], stderr


def test_babysit_restarts_the_run_until_it_is_done(machine):
    script = ["none", "running", "preempted", "none", "running", "stopped", "running", "lost"]
    script += ["failed 1 a peer died", "running", "done"]
    steps, stderr = babysit(machine, script)
    begin = ["queued-resources create", "scp", "worker.sh start"]
    again = ["worker.sh stop", "worker.sh start"]
    gone = "queued-resources delete"
    assert steps == [*begin, gone, *begin, *again, *again, *again, gone]
    assert stderr.splitlines()[-2].endswith("the run is done: gs://bucket/a run")
    # It always starts the same command, and --dry-run prints everything that it runs.
    starts = [call for call in machine.calls() if "worker.sh start" in call[-1]]
    assert len(starts) == 5 and all(call == starts[0] for call in starts)
    printed, _ = machine.run(
        "babysit.sh",
        *TPU_FLAGS,
        "--accelerator-type=v5litepod-16",
        *TRAINING,
        "--dry-run",
        "--",
        *FLAGS,
    )
    assert {tuple(call) for call in machine.calls()} == {tuple(call) for call in printed}


def test_babysit_continues_with_an_existing_run(machine):
    (machine.folder / "request").write_text("ACTIVE\n")
    steps, _ = babysit(machine, ["running", "done"], "--keep")
    assert steps == []


def test_babysit_gives_up_on_user_errors_and_after_too_many_restarts(machine):
    (machine.folder / "request").write_text("ACTIVE\n")
    steps, stderr = babysit(machine, ["failed 2 error: --config is missing"], code=2)
    assert steps == []
    assert stderr == "error: the run ended with exit code 2: error: --config is missing\n"
    steps, stderr = babysit(machine, ["failed 1 x"] * 3, "--restarts=2", code=1)
    assert steps == ["worker.sh stop", "worker.sh start"] * 2
    assert (
        stderr.splitlines()[-1]
        == "error: the run failed 3 times: find the cause with tpu_vm.sh log"
    )


@pytest.mark.parametrize(
    ("end", "state", "code", "requeued"),
    [
        ("echo 'done: 5 steps'", "RUNNING", 0, False),
        ("echo 'stopped by SIGTERM'", "RUNNING", 0, True),
        ("echo 'stopped by SIGTERM'", "COMPLETING", 0, False),
        ("exit 3", "RUNNING", 3, False),
        ("exit 143", "RUNNING", 0, True),
        ("exit 143", "COMPLETING", 143, False),
    ],
    ids=["done", "stopped", "cancelled", "failed", "terminated", "terminated-cancelled"],
)
def test_slurm_job_is_requeued_until_it_is_done(machine, end, state, code, requeued):
    machine.add_program("srun", f"{RECORD}\n{end}\n")
    machine.add_program("squeue", f"#!/bin/sh\necho {state}\n")
    machine.add_program("scontrol")
    arguments = [*TRAINING, "--python=a python"]
    printed, _ = machine.run("slurm.sbatch", *arguments, "--dry-run", "--", *FLAGS)
    assert printed[0] == [
        *["srun", "--kill-on-bad-exit=1", "--gpu-bind=none"],
        *["a python", "-m", "tp_jax.main", *TRAINING, *FLAGS],
    ]
    # SLURM runs a copy of the script in another folder.
    shutil.copy(ROOT / "launch" / "slurm.sbatch", machine.folder)
    job = dict(SLURM_JOB_ID="7", SLURM_SUBMIT_DIR=str(ROOT))
    (machine.folder / "launch").mkdir()
    shutil.move(machine.folder / "slurm.sbatch", machine.folder / "launch")
    machine.run("slurm.sbatch", *arguments, "--", *FLAGS, root=machine.folder, code=code, **job)
    again = [["scontrol", "requeue", "7"]] if requeued else []
    assert machine.calls() == [printed[0], *again]


def test_options_of_the_test_command_are_checked():
    for option, said in (
        ("--python=0.1", "--python=0.1: python0.1 doesn't run: install it"),
        ("--jax=new", "--jax=new: give a release, such as --jax=0.10"),
    ):
        command = ["bash", str(ROOT / "launch/test.sh"), option]
        done = subprocess.run(command, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (2, f"error: {said}\n")


def test_actions_of_the_supply_chain_are_checked():
    for arguments, said in (
        ((), "the action is missing: give audit, sbom or notices; see --help"),
        (("licence",), "unknown action licence: give audit, sbom or notices; see --help"),
        (("audit", "x"), "unexpected argument x; see --help"),
    ):
        command = ["bash", str(ROOT / "launch/supply_chain.sh"), *arguments]
        done = subprocess.run(command, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (2, f"error: {said}\n")

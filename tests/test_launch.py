"""The launch scripts: the commands that they print, and that they run those and no others."""

import ast
import math
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[1]
TRAINING = ["--config=configs/imagenet256.py", "--workdir=gs://bucket/a run"]
FLAGS = ["--config.train.steps=5", "--config.data.dir=it's here; $HOME", "--empty="]
TPU = ["--name=n", "--zone=z"]
GCLOUD = ["gcloud", "compute", "tpus"]
ASK = GCLOUD + ["queued-resources", "describe", "n", "--zone=z", "--format=value(state.state)"]
# Writes down what it was called with.
RECORD = r"""#!/usr/bin/env bash
{ printf '%s\037' "${0##*/}" "$@"; printf '\036'; } >> "$RECORDED"
"""
# Writes down its arguments and goes on until SIGTERM or a file `end`, which holds its exit code.
PROGRAM = (
    """#!/usr/bin/env bash
trap 'echo "stopped by SIGTERM" >&2; exit 0' TERM
"""
    + RECORD
    + """
until [ -e end ]; do sleep 0.02; done
[ "$(cat end)" != 0 ] || echo "done: 5 steps" >&2
exit "$(cat end)"
"""
)
# A cloud: a request is granted at once, and each look at the run takes an answer from `script`.
CLOUD = (
    RECORD
    + """
case "$*" in
  *"queued-resources describe"*)
    cat request 2> /dev/null || { echo "ERROR: NOT_FOUND: no such resource" >&2; exit 1; } ;;
  *"queued-resources create"*) echo ACTIVE > request ;;
  *"queued-resources delete"*) rm request ;;
  *"tpu-vm describe"*) echo READY ;;
  *"worker.sh status"*)
    answer="$(head -n 1 script)"
    sed -i 1d script
    if [ "$answer" = preempted ]; then echo SUSPENDED > request; exit 255; fi
    echo "$answer" ;;
esac
"""
)


class Machine:
    """A folder to work in, with programs on its PATH that only write down how they were called."""

    def __init__(self, place):
        self.place, self.record = place, place / "recorded"
        (place / "bin").mkdir()
        self.environment = os.environ | dict(
            PATH=f"{place / 'bin'}:/usr/bin:/bin",
            RECORDED=str(self.record),
            HOME=str(place),
            TMPDIR=str(place),
        )

    def has(self, name, text=RECORD):
        program = self.place / "bin" / name
        program.write_text(text)
        program.chmod(0o755)

    def recorded(self):
        text = self.record.read_text() if self.record.exists() else ""
        return [call.split("\037")[:-1] for call in text.split("\036")[:-1]]

    def run(self, script, *arguments, code=0, root=ROOT, **environment):
        """What the script printed, as a list of commands; its errors."""
        done = subprocess.run(
            ["bash", root / "launch" / script, *arguments],
            cwd=self.place,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return [shlex.split(line, comments=True) for line in done.stdout.splitlines()], done.stderr

    def checkout(self):
        """A copy of the scripts as it lies on a worker."""
        shutil.copytree(ROOT / "launch", self.place / "tp_jax" / "launch")
        return self.place / "tp_jax"


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def wait_until(what):
    deadline = time.monotonic() + 20
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("kind", "image"),
    [
        ("v4-32", "tpu-ubuntu2204-base"),
        ("v5litepod-16", "v2-alpha-tpuv5-lite"),
        ("v5p-128", "v2-alpha-tpuv5"),
        ("v6e-64", "v2-alpha-tpuv6e"),
    ],
)
def test_each_generation_gets_its_image(machine, kind, image):
    kind = f"--accelerator-type={kind}"
    create, _ = machine.run("tpu_vm.sh", "create", *TPU, kind, "--spot", "--dry-run")
    made = [*GCLOUD, "tpu-vm", "create", "n", "--zone=z", kind, f"--version={image}", "--spot"]
    assert create == [made]
    queue, _ = machine.run("tpu_vm.sh", "queue", *TPU, kind, "--project=p", "--dry-run")
    place = ["n", "--node-id=n", "--zone=z", "--project=p", kind]
    assert queue == [[*GCLOUD, "queued-resources", "create", *place, f"--runtime-version={image}"]]


def test_a_tpu_vm_is_told_exactly_this(machine):
    on = [*GCLOUD, "tpu-vm", "ssh", "n", "--zone=z"]
    start = ["bash", "launch/worker.sh", "start", *TRAINING, *FLAGS]
    expected = {
        "log": [[*on, "--worker=0", "--command=cd tp_jax && tail -n 100 -F runs/worker/log"]],
        "stop": [[*on, "--worker=all", "--command=cd tp_jax && bash launch/worker.sh stop"]],
        "delete": [[*GCLOUD, "tpu-vm", "delete", "n", "--zone=z", "--quiet"]],
        "status": [
            ASK,
            [*GCLOUD, "tpu-vm", "describe", "n", "--zone=z", "--format=value(state)"],
            [*on, "--worker=0", "--command=cd tp_jax && bash launch/worker.sh status"],
        ],
    }
    for action, commands in expected.items():
        assert machine.run("tpu_vm.sh", action, *TPU, "--dry-run")[0] == commands, action
    queued, _ = machine.run("tpu_vm.sh", "delete", *TPU, "--queued", "--dry-run")
    gone = ["queued-resources", "delete", "n", "--zone=z", "--force", "--quiet"]
    assert queued == [[*GCLOUD, *gone]]
    ((*head, command),), _ = machine.run(
        "tpu_vm.sh", "run", *TPU, *TRAINING, "--dry-run", "--", *FLAGS
    )
    assert head == [*on, "--worker=all"]
    assert shlex.split(command.removeprefix("--command=")) == ["cd", "tp_jax", "&&", *start]


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("tpu_vm.sh", ["create", *TPU, "--accelerator-type=v6e-8"]),
        ("tpu_vm.sh", ["queue", *TPU, "--accelerator-type=v6e-8", "--spot"]),
        ("tpu_vm.sh", ["setup", *TPU]),
        ("tpu_vm.sh", ["run", *TPU, *TRAINING, "--", *FLAGS]),
        ("tpu_vm.sh", ["status", *TPU]),
        ("tpu_vm.sh", ["log", *TPU]),
        ("tpu_vm.sh", ["stop", *TPU]),
        ("tpu_vm.sh", ["delete", *TPU, "--queued"]),
        ("xpk.sh", ["create", "--cluster=k", "--workload=w", "--tpu-type=v6e-64"]),
        ("xpk.sh", ["delete", "--cluster=k", "--workload=w"]),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_what_runs_is_what_dry_run_prints(machine, script, arguments):
    if script == "xpk.sh" and arguments[0] == "create":
        arguments = [*arguments, "--docker-image=i", *TRAINING, "--", *FLAGS]
    at = arguments.index("--") if "--" in arguments else len(arguments)
    printed, _ = machine.run(script, *arguments[:at], "--dry-run", *arguments[at:])
    for name in ("gcloud", "xpk", "tar"):
        machine.has(name)
    assert machine.recorded() == []
    _, told = machine.run(script, *arguments)
    assert machine.recorded() == printed
    assert [shlex.split(line.removeprefix("+ ")) for line in told.splitlines()] == printed


def test_arguments_arrive_whole_on_every_worker(machine):
    root = machine.checkout()
    machine.has("python", PROGRAM)
    machine.has("gcloud", '#!/usr/bin/env bash\nbash -c "${!##--command=}"\n')
    machine.run("tpu_vm.sh", "run", *TPU, *TRAINING, "--", *FLAGS)
    wait_until(machine.recorded)
    assert machine.recorded() == [["python", "-m", "tp_jax.main", *TRAINING, *FLAGS]]

    def status():
        return machine.run("worker.sh", "status", root=root)[0]

    assert status() == [["running"]]
    _, refusal = machine.run("worker.sh", "start", *TRAINING, root=root, code=2)
    assert refusal == "error: a run is going on here already: tpu_vm.sh stop ends it\n"
    machine.run("tpu_vm.sh", "stop", *TPU)
    assert status() == [["stopped"]]
    for code, said in ((0, ["done"]), (2, ["failed", "2", "stopped"])):
        (root / "end").write_text(str(code))
        machine.run("tpu_vm.sh", "run", *TPU, *TRAINING)
        wait_until(lambda: status() != [["running"]])
        assert status()[0][: len(said)] == said[: 2 if code else 1]


def test_a_run_that_vanished_is_lost(machine):
    root = machine.checkout()
    assert machine.run("worker.sh", "status", root=root)[0] == [["none"]]
    machine.has("python", PROGRAM)
    machine.run("worker.sh", "start", root=root)
    pid = int((root / "runs" / "worker" / "pid").read_text())
    os.killpg(os.getpgid(pid), signal.SIGKILL)
    wait_until(lambda: machine.run("worker.sh", "status", root=root)[0] == [["lost"]])


@pytest.mark.parametrize(("end", "code"), [("0", 0), ("1", 1), ("2", 2), (None, 42)])
def test_a_pod_that_sigterm_stopped_isnt_finished(machine, end, code):
    root = machine.checkout()
    machine.has("python", PROGRAM)
    if end:
        (root / "end").write_text(end)
    command = ["bash", root / "launch" / "worker.sh", "once", *TRAINING]
    with subprocess.Popen(command, env=machine.environment) as pod:
        wait_until(machine.recorded)
        if not end:
            time.sleep(0.2)
            pod.terminate()
        assert pod.wait(20) == code


def test_xpk_runs_the_flags_as_they_are(machine):
    where = ["--cluster=k", "--workload=w", "--tpu-type=v6e-64", "--num-slices=2", "--zone=z"]
    (printed,), _ = machine.run(
        "xpk.sh", "create", *where, "--docker-image=i", *TRAINING, "--dry-run", "--", *FLAGS
    )
    *head, command = printed
    assert " ".join(head) == (
        "xpk workload create --cluster=k --workload=w --zone=z --tpu-type=v6e-64 --num-slices=2 "
        "--docker-image=i --max-restarts=100 --restart-on-exit-codes=1"
    )
    once = ["exec", "bash", "launch/worker.sh", "once", *TRAINING, *FLAGS]
    assert shlex.split(command.removeprefix("--command=")) == once
    (layered,), _ = machine.run(
        "xpk.sh", "create", *where, "--base-docker-image=b", *TRAINING, "--dry-run"
    )
    assert {"--base-docker-image=b", f"--script-dir={ROOT}"} < set(layered)


def babysit(machine, script, *arguments, code=0):
    machine.has("gcloud", CLOUD)
    machine.has("tar")
    (machine.place / "script").write_text("\n".join(script) + "\n")
    _, said = machine.run(
        "babysit.sh",
        *TPU,
        "--accelerator-type=v5litepod-16",
        *TRAINING,
        "--poll=0",
        *arguments,
        "--",
        *FLAGS,
        code=code,
    )
    calls = [" ".join(call) for call in machine.recorded()]
    steps = "queued-resources create|queued-resources delete|scp|worker.sh start|worker.sh stop"
    return [found[0] for call in calls if (found := re.search(steps, call))], said


def test_babysit_goes_on_until_the_run_is_done(machine):
    script = ["none", "running", "preempted", "none", "running", "stopped", "running", "lost"]
    script += ["failed 1 a peer died", "running", "done"]
    steps, said = babysit(machine, script)
    begin = ["queued-resources create", "scp", "worker.sh start"]
    again = ["worker.sh stop", "worker.sh start"]
    gone = "queued-resources delete"
    assert steps == [*begin, gone, *begin, *again, *again, *again, gone]
    assert said.splitlines()[-2].endswith("the run is done: gs://bucket/a run")
    # The same command in the same workdir, each time; and all of it was announced.
    starts = [call for call in machine.recorded() if "worker.sh start" in call[-1]]
    assert len(starts) == 5 and all(call == starts[0] for call in starts)
    printed, _ = machine.run(
        "babysit.sh", *TPU, "--accelerator-type=v5litepod-16", *TRAINING, "--dry-run", "--", *FLAGS
    )
    assert {tuple(call) for call in machine.recorded()} == {tuple(call) for call in printed}


def test_babysit_takes_up_where_another_left(machine):
    (machine.place / "request").write_text("ACTIVE\n")
    steps, _ = babysit(machine, ["running", "done"], "--keep")
    assert steps == []


def test_babysit_gives_up_on_what_trying_again_wont_mend(machine):
    (machine.place / "request").write_text("ACTIVE\n")
    steps, said = babysit(machine, ["failed 2 error: --config is missing"], code=2)
    assert steps == []
    assert said == "error: the run ended with exit code 2: error: --config is missing\n"
    steps, said = babysit(machine, ["failed 1 x"] * 3, "--restarts=2", code=1)
    assert steps == ["worker.sh stop", "worker.sh start"] * 2
    assert said.splitlines()[-1] == "error: it ended 3 times; tpu_vm.sh log says why"


@pytest.mark.parametrize(
    ("end", "state", "code", "requeued"),
    [
        ("echo 'done: 5 steps'", "RUNNING", 0, False),
        ("echo 'stopped by SIGTERM'", "RUNNING", 0, True),
        ("echo 'stopped by SIGTERM'", "COMPLETING", 0, False),
        ("exit 3", "RUNNING", 3, False),
    ],
    ids=["done", "stopped", "cancelled", "failed"],
)
def test_a_slurm_job_queues_again_until_it_is_done(machine, end, state, code, requeued):
    machine.has("srun", f"{RECORD}\n{end}\n")
    machine.has("squeue", f"#!/bin/sh\necho {state}\n")
    machine.has("scontrol")
    arguments = [*TRAINING, "--python=a python"]
    printed, _ = machine.run("slurm.sbatch", *arguments, "--dry-run", "--", *FLAGS)
    assert printed[0] == [
        *["srun", "--kill-on-bad-exit=1", "--gpu-bind=none"],
        *["a python", "-m", "tp_jax.main", *TRAINING, *FLAGS],
    ]
    # From a copy in another folder, as SLURM does it.
    shutil.copy(ROOT / "launch" / "slurm.sbatch", machine.place)
    job = dict(SLURM_JOB_ID="7", SLURM_SUBMIT_DIR=str(ROOT))
    (machine.place / "launch").mkdir()
    shutil.move(machine.place / "slurm.sbatch", machine.place / "launch")
    machine.run("slurm.sbatch", *arguments, "--", *FLAGS, root=machine.place, code=code, **job)
    again = [["scontrol", "requeue", "7"]] if requeued else []
    assert machine.recorded() == [printed[0], *again]


CREATE = ["create", "--cluster=k", "--workload=w", "--tpu-type=v6e-8"]
BABYSIT = [*TPU, "--accelerator-type=v6e-8", "--config=c"]


@pytest.mark.parametrize(
    ("script", "arguments", "remedy"),
    [
        ("tpu_vm.sh", [], "give create, queue, setup"),
        ("tpu_vm.sh", ["crate", *TPU], "give create, queue, setup"),
        ("tpu_vm.sh", ["create", "--name=n"], "--zone is missing: give --zone="),
        ("tpu_vm.sh", ["create", *TPU], "give --accelerator-type="),
        ("tpu_vm.sh", ["create", *TPU, "--accelerator-type=v9-8"], "give --runtime-version="),
        ("tpu_vm.sh", ["run", *TPU, "--config=c"], "give --workdir="),
        ("tpu_vm.sh", ["log", *TPU, "--zome=z"], "unknown option --zome: see --help"),
        ("tpu_vm.sh", ["log", *TPU, "extra"], "options are written --name=value"),
        ("tpu_vm.sh", ["log", "--name=", "--zone=z"], "--name is empty: give --name="),
        ("tpu_vm.sh", ["log", "--zone=z", "--name"], "--name needs a value"),
        ("tpu_vm.sh", ["create", *TPU, "--spot=yes"], "--spot takes no value"),
        ("babysit.sh", [], "--name is missing"),
        ("babysit.sh", [*BABYSIT, "--workdir=runs/x"], "give --workdir=gs://"),
        ("babysit.sh", [*BABYSIT, "--workdir=gs://b", "--poll=1m"], "give whole numbers"),
        ("xpk.sh", [], "give create or delete"),
        ("xpk.sh", [*CREATE, *TRAINING], "give --docker-image="),
        ("xpk.sh", [*CREATE, "--docker-image=i", "--config=c", "--workdir=w"], "give gs://"),
        ("xpk.sh", [*CREATE, "--docker-image=i", *TRAINING, "--", "a\nb"], "without it"),
        ("slurm.sbatch", ["--config=c"], "--workdir is missing"),
        ("slurm.sbatch", TRAINING, "sbatch launch/slurm.sbatch"),
        ("worker.sh", ["go"], "give setup, start"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(machine, script, arguments, remedy):
    for name in ("gcloud", "xpk", "srun", "python"):
        machine.has(name)
    printed, error = machine.run(script, *arguments, code=2)
    assert printed == [] and machine.recorded() == []
    assert len(error.splitlines()) == 1 and error.startswith("error: ")
    assert remedy in error


@pytest.mark.parametrize(
    "script", ["tpu_vm.sh", "babysit.sh", "xpk.sh", "slurm.sbatch", "worker.sh", "aot_table.sh"]
)
def test_help_is_the_head_of_the_script(script):
    command = ["bash", ROOT / "launch" / script, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"launch/{script} " in done.stdout and "SBATCH" not in done.stdout
    assert "set -euo" not in done.stdout


def test_the_table_of_what_fits_is_of_flags_that_there_are(tmp_path):
    command = ["bash", ROOT / "launch" / "aot_table.sh", f"--out={tmp_path / 'new'}", "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    commands = [shlex.split(line) for line in done.stdout.splitlines()]
    assert len(commands) == 31 and not (tmp_path / "new").exists()
    assert len({word for words in commands for word in words if "--json" in word}) == 31
    for words in commands:
        assert words[1:3] == ["-m", "tp_jax.aot"]
        sizes = dict(
            word.removeprefix("--config.mesh.").split("=") for word in words if ".mesh." in word
        )
        side = next(word for word in words if "--topology" in word).partition(":")[2]
        slices = int(next(word for word in words if "--slices" in word).partition("=")[2])
        chips = math.prod(map(int, side.split("x"))) * slices
        assert "-1" in sizes.values() or math.prod(map(int, sizes.values())) * slices == chips


def test_skypilot_tells_gpu_machines_who_they_are(machine):
    task = yaml.safe_load((ROOT / "launch" / "sky.yaml").read_text())
    root = machine.checkout()
    (root / "end").write_text("0")
    told = '"$JAX_COORDINATOR_ADDRESS $JAX_NUM_PROCESSES $JAX_PROCESS_ID"'
    machine.has("python", PROGRAM.replace('"$@"', f'"$@" {told}'))
    machine.has("nvidia-smi")
    environment = dict(
        CONFIG=TRAINING[0].partition("=")[2],
        WORKDIR=TRAINING[1].partition("=")[2],
        FLAGS=" ".join(map(shlex.quote, FLAGS)),
        SKYPILOT_NODE_IPS="10.0.0.1\n10.0.0.2",
        SKYPILOT_NODE_RANK="1",
    )
    assert set(task["envs"]) == {"CONFIG", "WORKDIR", "FLAGS"}
    for nodes in "21":
        subprocess.run(
            ["bash", "-c", task["run"]],
            cwd=root,
            env=machine.environment | environment | dict(SKYPILOT_NUM_NODES=nodes),
            check=True,
        )
    call = ["python", "-m", "tp_jax.main", *TRAINING, *FLAGS]
    assert machine.recorded() == [[*call, "10.0.0.1:8476 2 1"], [*call, "  "]]


@pytest.mark.parametrize("kind", ["tpu", "cuda"])
def test_an_image_copies_what_there_is_and_installs_the_extra(kind):
    text = (ROOT / "launch" / f"Dockerfile.{kind}").read_text()
    copied = [name for line in re.findall(r"^COPY (.*) \S+$", text, re.M) for name in line.split()]
    assert {"setup.py", "tp_jax", "configs", "launch"} < set(copied)
    assert all((ROOT / name).exists() for name in copied)
    setup = ast.parse((ROOT / "setup.py").read_text())
    (known,) = (
        ast.literal_eval(node.value)
        for node in setup.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "EXTRAS"
    )
    extras = re.search(r"'\.\[(.*)\]'", text)[1].split(",")
    assert extras == ["train", kind] and set(extras) < set(known)


PYTHON = r"""#!/bin/bash
printf '%s\037' "$@" >> "$RECORDED"
printf '\036' >> "$RECORDED"
for argument in "$@"; do
  case "$argument" in
    --workdir=*) workdir="${argument#*=}" ;;
    --out=*) out="${argument#*=}" ;;
  esac
done
case "$2" in
  tp_jax.main) mkdir -p "$workdir/checkpoints" ;;
  tp_jax.evaluate) case "$out" in *.json) ;; *) mkdir -p "$out"; touch "$out/scores.json" ;; esac ;;
esac
"""


def test_variants_are_trained_and_scored_once(machine):
    checkout, root = machine.checkout(), machine.place / "root"
    shutil.copy(ROOT / "setup.py", checkout)
    python = checkout / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(PYTHON)
    python.chmod(0o755)

    def compare(*arguments, code=0):
        machine.record.unlink(missing_ok=True)
        _, said = machine.run(
            "compare.sh", *arguments, code=code, root=checkout, SEEDS="0 7", PYTHON=sys.executable
        )
        calls = [call[1:] for call in machine.recorded()]
        return [call for call in calls if call[0].startswith("tp_jax.")], said

    calls, _ = compare("frozenlake", str(root), "--config.train.steps=5")
    trained = [call for call in calls if call[0] == "tp_jax.main"]
    assert [(call[1].partition("frozenlake.py")[2], call[2], call[3]) for call in trained] == [
        (config, f"--workdir={root}/{variant}/{seed}/run", f"--config.seed={seed}")
        for seed in (0, 7)
        for variant, config in (("recursive", ""), ("random", ":random"), ("single", ":single"))
    ]
    assert all(call[-1] == "--config.train.steps=5" for call in trained)
    scored = [call for call in calls if call[0] == "tp_jax.evaluate"]
    assert len(scored) == 11 and sum("--latent_steps=1" in call for call in scored) == 4
    suite = ["tp_jax.evaluate", "--suite=navigation"]
    assert scored[-1] == [*suite, f"--collect={root}", f"--out={root}/frozenlake.json"]
    run = f"--workdir={root}/random/7/run"
    assert [*suite, run, f"--out={root}/random-1/7", "--latent_steps=1"] in scored
    # Again only what has been trained on since.
    calls, _ = compare("frozenlake", str(root))
    assert [call for call in calls if call[0] == "tp_jax.evaluate"] == [scored[-1]]
    (root / "random/0/run/checkpoints/2000").mkdir()
    calls, _ = compare("frozenlake", str(root))
    again = [call[2] for call in calls if call[0] == "tp_jax.evaluate"]
    assert again == [f"--workdir={root}/random/0/run"] * 2 + [f"--collect={root}"]
    for wrong in (["lake"], ["frozenlake", str(root), "--config.model.thinking.rank=4"]):
        calls, said = compare(*wrong, str(root), code=2)
        assert not calls and said.startswith("error: ")

    calls, _ = compare("shapes", str(root / "shapes"))
    base = [call[4] for call in calls if call[0] == "tp_jax.main" and "think" in call[1]]
    assert base == [f"--config.init.base={root}/shapes/base/{seed}/run" for seed in (0, 7)]

"""Launch scripts: wrong arguments, help, container images, and comparing variants."""

import ast
import math
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import yaml
from fake_machine import FLAGS, PROGRAM, RECORD, ROOT, TPU_FLAGS, TRAINING

CREATE = ["create", "--cluster=k", "--workload=w", "--tpu-type=v6e-8"]
BABYSIT = [*TPU_FLAGS, "--accelerator-type=v6e-8", "--config=c"]


@pytest.mark.parametrize(
    ("script", "arguments", "remedy"),
    [
        ("tpu_vm.sh", [], "give create, queue, setup"),
        ("tpu_vm.sh", ["crate", *TPU_FLAGS], "give create, queue, setup"),
        ("tpu_vm.sh", ["create", "--name=n"], "--zone is missing: give --zone="),
        ("tpu_vm.sh", ["create", *TPU_FLAGS], "give --accelerator-type="),
        ("tpu_vm.sh", ["create", *TPU_FLAGS, "--accelerator-type=v9-8"], "give --runtime-version="),
        ("tpu_vm.sh", ["run", *TPU_FLAGS, "--config=c"], "give --workdir="),
        ("tpu_vm.sh", ["log", *TPU_FLAGS, "--zome=z"], "unknown option --zome: see --help"),
        ("tpu_vm.sh", ["log", *TPU_FLAGS, "extra"], "options are written --name=value"),
        ("tpu_vm.sh", ["log", "--name=", "--zone=z"], "--name is empty: give --name="),
        ("tpu_vm.sh", ["log", "--zone=z", "--name"], "--name needs a value"),
        ("tpu_vm.sh", ["create", *TPU_FLAGS, "--spot=yes"], "--spot takes no value"),
        ("babysit.sh", [], "--name is missing"),
        ("babysit.sh", [*BABYSIT, "--workdir=runs/x"], "give --workdir=gs://"),
        ("babysit.sh", [*BABYSIT, "--workdir=gs://b", "--poll=1m"], "give whole numbers"),
        ("xpk.sh", [], "give create or delete"),
        ("xpk.sh", [*CREATE, *TRAINING], "give --docker-image="),
        ("xpk.sh", [*CREATE, "--docker-image=i", "--config=c", "--workdir=w"], "give gs://"),
        ("xpk.sh", [*CREATE, "--docker-image=i", *TRAINING, "--", "a\nb"], "without it"),
        ("slurm.sbatch", ["--config=c"], "--workdir is missing"),
        ("slurm.sbatch", [*TRAINING, "--entry=trian"], "--entry=trian is unknown: give main,"),
        (
            "tpu_vm.sh",
            ["run", *TPU_FLAGS, "--entry=config"],
            "--entry=config is unknown: give main,",
        ),
        ("slurm.sbatch", TRAINING, "sbatch launch/slurm.sbatch"),
        ("worker.sh", ["go"], "give setup, start"),
        ("bench_gpu.sh", ["--size=tiny"], "give full or small"),
        ("bench_gpu.sh", ["--minutes=8m"], "give a whole number"),
        ("bench_gpu.sh", ["--peer_dit=/nowhere"], "/nowhere has no models.py"),
        ("bench_gpu.sh", ["--python=/no/python"], "--python=/no/python isn't there"),
    ],
)
def test_wrong_arguments_are_refused_with_a_one_line_error(machine, script, arguments, remedy):
    for name in ("gcloud", "xpk", "srun", "python"):
        machine.add_program(name)
    printed, error = machine.run(script, *arguments, code=2)
    assert printed == [] and machine.calls() == []
    assert len(error.splitlines()) == 1 and error.startswith("error: ")
    assert remedy in error


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("tpu_vm.sh", []),
        ("tpu_vm.sh", ["setup", *TPU_FLAGS]),
        ("babysit.sh", BABYSIT),
        ("xpk.sh", []),
        ("xpk.sh", CREATE),
        ("slurm.sbatch", TRAINING),
        ("worker.sh", []),
        ("worker.sh", ["setup"]),
        ("worker.sh", ["start"]),
        ("aot_table.sh", []),
        ("bench_gpu.sh", []),
        ("compare.sh", []),
        ("compare.sh", ["frozenlake", "root"]),
        ("quickstart.sh", []),
        ("test.sh", []),
        ("lock.sh", []),
    ],
)
def test_help_prints_the_head_of_the_script_and_does_nothing_else(machine, script, arguments):
    root = machine.checkout()
    for name in ("gcloud", "xpk", "srun", "python", "python3", "uv", "curl"):
        machine.add_program(name)
    done = subprocess.run(
        ["bash", root / "launch" / script, *arguments, "--help"],
        env=machine.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"launch/{script} " in done.stdout and "SBATCH" not in done.stdout
    assert "set -euo" not in done.stdout and done.stderr == ""
    assert machine.calls() == [] and not (root / ".venv").exists()


def test_aot_table_uses_meshes_that_fit_their_topology(tmp_path):
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


def test_skypilot_sets_the_process_variables_on_gpu_machines(machine):
    task = yaml.safe_load((ROOT / "launch" / "sky.yaml").read_text())
    root = machine.checkout()
    (root / "end").write_text("0")
    variables = '"$JAX_COORDINATOR_ADDRESS $JAX_NUM_PROCESSES $JAX_PROCESS_ID"'
    machine.add_program("python", PROGRAM.replace('"$@"', f'"$@" {variables}'))
    machine.add_program("nvidia-smi")
    environment = dict(
        CONFIG=TRAINING[0].partition("=")[2],
        WORKDIR=TRAINING[1].partition("=")[2],
        FLAGS=" ".join(map(shlex.quote, FLAGS)),
        SKYPILOT_NODE_IPS="10.0.0.1\n10.0.0.2",
        SKYPILOT_NODE_RANK="1",
    )
    assert set(task["envs"]) == {"CONFIG", "WORKDIR", "FLAGS", "ENTRY", "EXTRAS"}
    environment["ENTRY"] = task["envs"]["ENTRY"]
    for nodes in "21":
        subprocess.run(
            ["bash", "-c", task["run"]],
            cwd=root,
            env=machine.environment | environment | dict(SKYPILOT_NUM_NODES=nodes),
            check=True,
        )
    subprocess.run(
        ["bash", "-c", task["run"]],
        cwd=root,
        env=machine.environment
        | environment
        | dict(SKYPILOT_NUM_NODES="1", ENTRY="sample", CONFIG="", FLAGS="--out=o"),
        check=True,
    )
    call = ["python", "-m", "tp_jax.main", *TRAINING, *FLAGS]
    sample = ["python", "-m", "tp_jax.sample", TRAINING[1], "--out=o"]
    assert machine.calls() == [[*call, "10.0.0.1:8476 2 1"], [*call, "  "], [*sample, "  "]]


@pytest.mark.parametrize("kind", ["tpu", "cuda"])
def test_dockerfile_copies_existing_files_and_installs_known_extras(kind):
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
    assert '".[$EXTRAS]"' in text
    extras = re.search(r"^ARG EXTRAS=(.*)$", text, re.M)[1].split(",")
    assert extras == ["train", kind] and set(extras) < set(known)


def test_compare_runs_the_study_and_collects_its_scores(machine):
    checkout, root = machine.checkout(), machine.folder / "root"
    shutil.copy(ROOT / "setup.py", checkout)
    python = checkout / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(RECORD)
    python.chmod(0o755)

    def compare(*arguments, code=0, **environment):
        machine.record.unlink(missing_ok=True)
        _, stderr = machine.run(
            "compare.sh", *arguments, code=code, root=checkout, PYTHON=sys.executable, **environment
        )
        calls = [call[1:] for call in machine.calls()]
        return [call[1:] for call in calls if call[1:2] and call[1].startswith("tp_jax.")], stderr

    options = ["frozenlake", str(root), "--config.train.steps=5"]
    printed, _ = machine.run("compare.sh", *options, "--dry-run", root=checkout, SEEDS="2")
    assert machine.calls() == []
    calls, _ = compare(*options, SEEDS="2")
    assert [words[2:] for words in printed] == calls
    assert calls == [
        [
            "tp_jax.ablate", "--study=compare", "--config=configs/frozenlake.py", "--seeds=2",
            "--jobs=1", "--suites=frozenlake", f"--out={root}", "--config.train.steps=5",
        ],
        [
            "tp_jax.evaluate", "--suite=frozenlake", f"--collect={root}/scores/frozenlake",
            f"--out={root}/frozenlake.json",
        ],
    ]  # fmt: skip
    calls, _ = compare("shapes", str(root))
    assert calls[0][2:4] == ["--config=configs/shapes.py", "--seeds=3"]
    for wrong in (["lake"], ["frozenlake", str(root), "--config.model.thinking.rank=4"]):
        calls, stderr = compare(*wrong, str(root), code=2)
        assert not calls and stderr.startswith("error: ")

"""Benchmarks run, compare fairly, resume, and refuse what can't be measured. Nothing is timed."""

import json
import pathlib
import shlex
import subprocess

import pytest
import sweep
from benchmarks import raises_user_error
from conftest import run_entry
from etils import epath

from tp_jax.performance import bench, measure
from tp_jax.performance.benchmarks import data, dispatch
from tp_jax.performance.measure import Contender, Failed, Group
from tp_jax.performance.options import BenchOptions
from tp_jax.performance.peers import check_peers
from tp_jax.performance.standard import standard_config

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / "tp_jax" / "performance" / "results"


class Scripted:
    """A run whose calls take the given seconds; it notes its turns."""

    def __init__(self, name, seconds, turns):
        self.name, self.script, self.turns, self.closed = name, iter(seconds), turns, False

    def seconds(self, calls):
        self.turns.append((self.name, calls))
        return calls * next(self.script)

    def facts(self):
        return {"program_bytes": 7}

    def close(self):
        self.turns.append((self.name, "closed"))


def test_contenders_take_turns_and_are_compared_repetition_by_repetition():
    turns = []
    # The first call of each warms up. The machine is twice as slow in the third repetition.
    ours = Contender(
        "ours", lambda: Scripted("ours", (9, 1.0, 1.0, 2.0), turns), images=8, flops=4e9
    )
    theirs = Contender(
        "theirs", lambda: Scripted("theirs", (0.5, 3.0, 3.2, 6.0), turns), compare_to=("ours",)
    )
    ours_row, theirs_row = measure.measure_group(Group("g", (ours, theirs)), 3, 2.0)
    turn = [("ours", 1), ("theirs", 4)]
    closed = [("theirs", "closed"), ("ours", "closed")]
    assert turns == [("ours", 1), ("theirs", 1), *turn * 3, *closed]
    assert ours_row["times"] == [1.0, 1.0, 2.0]
    assert ours_row["seconds"] == {"median": 1.0, "low": 1.0, "high": 1.5}
    assert (ours_row["images_per_second"], ours_row["flops_per_second"]) == (8.0, 4e9)
    assert ours_row["program_bytes"] == 7
    assert theirs_row["ratios"] == {"ours": pytest.approx({"median": 3.2, "low": 3.0, "high": 3.1})}


def test_a_contender_that_fails_leaves_a_row_that_says_why():
    def fail():
        raise Failed("no compiler")

    group = Group("g", (
        Contender("a", fail, by="peer"),
        Contender("b", lambda: Scripted("b", (1.0,) * 3, []), compare_to=("a",)),
    ))  # fmt: skip
    failed, row = measure.measure_group(group, 2, 0.5)
    assert failed == {"group": "g", "case": "a", "by": "peer", "failed": "no compiler"}
    assert row["ratios"] == {}


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("DiT-S/2", ("dit", 12, 384, 2, "float32", 8)),
        ("DiT-XL/4", ("dit", 28, 1152, 4, "bfloat16", 32)),
        ("MMDiT", ("mmdit", 4, 512, 2, "float32", 8)),
        ("SD3-medium", ("mmdit", 24, 1536, 2, "bfloat16", 8)),
    ],
)
def test_standard_models(name, fields):
    config = standard_config(name)
    m = config.model
    assert (m.kind, m.depth, m.width, m.patch, m.dtype, config.train.batch_size) == fields
    bench.config_lib.build(config)
    with raises_user_error("unknown model 'DiT-M/2'"):
        standard_config("DiT-M/2")


def tiny(**options):
    config = standard_config("tiny")
    config.train.batch_size = 8
    config.prepare.batch_size = config.evaluation.batch_size = 8
    config.sampling.steps = 2
    what = options.pop("what", ("train",))
    return BenchOptions(what, config, repetitions=2, seconds=0.0, peers=(), **options)


# Those of large networks or of many programs.
SLOW = ("evaluate", "prepare", "dispatch", "attention", "startup")


def check(rows):
    assert rows and all("failed" not in row for row in rows)
    assert all(len(row["times"]) == 2 and row["seconds"]["median"] > 0 for row in rows)
    assert all(row["machine"]["versions"]["jax"] and row["date"] for row in rows)


@pytest.mark.slow
def test_train_steps_are_compared():
    rows = bench.run_bench(tiny(what=("train",)))
    check(rows)
    cases = {row["case"]: row["ratios"].keys() for row in rows}
    assert {case: list(ratios) for case, ratios in cases.items()} == {
        "all weights": [],
        "plain LoRA": ["all weights"],
        "thinking only": ["all weights", "plain LoRA"],
    }
    flops = {row["case"]: row["flops"] for row in rows}
    assert flops["plain LoRA"] < flops["thinking only"]


@pytest.mark.slow
@pytest.mark.parametrize("what", ["data", "checkpoint"])
def test_what_training_waits_for(what):
    options = tiny(what=(what,))
    options.config.model.thinking.layers = ()
    rows = bench.run_bench(options)
    check(rows)
    assert [row["case"] for row in rows if "waiting_share" in row] == [rows[-1]["case"]]


@pytest.mark.slow
@pytest.mark.parametrize("what", SLOW)
def test_longer_benchmarks_give_rows(what):
    rows = bench.run_bench(tiny(what=(what,), experts=(2, 4), latent_steps=(1, 2)))
    assert len([row for row in rows if "failed" not in row]) >= 2
    failed = {row["case"].rpartition(" ")[2] for row in rows if "failed" in row}
    assert failed <= {"cudnn", "splash"}


def test_dispatch_benchmark_counts_what_each_dispatch_computes():
    groups = list(dispatch.groups(tiny(experts=(2, 8), latent_steps=(1, 5))))
    names = [[contender.name for contender in group.contenders] for group in groups]
    assert names == [
        ["auto, M=2", "auto, M=8"], ["dense, M=2", "dense, M=8"],
        ["grouped, M=2", "grouped, M=8"], ["auto, T=1", "auto, T=5"],
    ]  # fmt: skip
    assert groups[1].contenders[1].compare_to == ("dense, M=2",)
    # One expert computes each token, whatever M is; the gate has a column for each expert.
    few, many = (contender.flops for contender in groups[2].contenders)
    assert few < many < 1.05 * few
    with raises_user_error("config.model.thinking.layers is empty"):
        options = tiny()
        options.config.model.thinking.layers = ()
        list(dispatch.groups(options))


def test_shares_of_waiting():
    times = {data.ONE_BATCH: [1.0, 1.0], data.PIPELINE: [1.25, 1.25]}
    assert data.waiting(times) == {"waiting_share": pytest.approx(0.2)}
    assert data.waiting({name: [1.0, 1.0] for name in times}) == {"waiting_share": 0.0}


@pytest.mark.slow
def test_a_killed_run_goes_on_and_the_report_holds_all(tmp_path, monkeypatch, capsys):
    files = dict(json=epath.Path(tmp_path / "a.json"), report=epath.Path(tmp_path / "a.md"))
    first = bench.run_bench(tiny(what=("forward",), **files))
    again = bench.run_bench(tiny(what=("forward", "sample"), **files))
    check(again)
    assert again[: len(first)] == first == json.loads(json.dumps(first))
    assert {row["what"] for row in again} == {"forward", "sample"}
    assert "forward: " in capsys.readouterr().err
    assert files["report"].read_text() == bench.render(again)
    assert json.loads(files["json"].read_text())["rows"] == again
    # Another commit is measured again, and takes the place of the earlier one.
    machine = bench.describe_machine()
    monkeypatch.setattr(bench, "describe_machine", lambda: machine | {"commit": "other"})
    other = bench.run_bench(tiny(what=("forward",), **files))
    assert len(other) == len(again)
    assert {row["machine"]["commit"] for row in other if row["what"] == "forward"} == {"other"}


def test_what_cannot_be_measured_is_refused_at_once(tmp_path, monkeypatch):
    config, folder = standard_config("tiny"), epath.Path(tmp_path)
    with raises_user_error("has no models.py: name a checkout of https://github.com/"):
        check_peers(config, folder)
    (folder / "models.py").touch()
    (folder / "diffusion").mkdir()
    monkeypatch.setattr("tp_jax.performance.peers.find_spec", lambda name: None)
    with raises_user_error("pip install torch timm"):
        check_peers(config, folder)
    monkeypatch.setattr("tp_jax.performance.peers.find_spec", lambda name: name)
    check_peers(config, folder)
    with raises_user_error("a dit model with classes"):
        check_peers(standard_config("tiny-MMDiT"), folder)
    config.sampling.sampler = "ddim"
    with raises_user_error("config.sampling.sampler='ddpm'"):
        check_peers(config, folder)
    with raises_user_error("--json="):
        bench.check_writable("--json", folder / "models.py" / "a.json")
    (folder / "a.json").write_text('{"rows": [{}]}')
    with raises_user_error("wasn't written by tp_jax.bench"):
        bench.read_rows(folder / "a.json")


def test_every_part_of_bench_gpu_is_accepted(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("tp_jax.performance.bench.find_groups", sweep.stop)
    for size in ("small", "full"):
        command = ["bash", "launch/bench_gpu.sh", "--dry-run", f"--size={size}", "--out=new"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        parts = [shlex.split(line) for line in done.stdout.splitlines()]
        assert len(parts) == 8 and all(words[0] == "timeout" for words in parts)
        for words in parts:
            flags = words[words.index("tp_jax.bench") + 1 :]
            assert run_entry("bench", *flags)[0] == 0, flags
    assert not (ROOT / "new").exists()


def test_bench_gpu_goes_on_after_a_part_that_fails(tmp_path):
    program = tmp_path / "python"
    program.write_text(
        f"#!/bin/bash\necho $* >> {tmp_path}/calls\n[[ $* != *dispatch* ]] || exit 1\n"
    )
    program.chmod(0o755)
    command = ["bash", ROOT / "launch" / "bench_gpu.sh", f"--python={program}"]
    command += [f"--out={tmp_path / 'out'}", "--size=small"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, len((tmp_path / "calls").read_text().splitlines())) == (1, 8)
    assert "results.json: 1; give the same" in done.stderr.splitlines()[-1]
    done = subprocess.run([*command, "--minutes=0"], capture_output=True, text=True)
    assert done.returncode == 1 and "results.json: 8; give" in done.stderr


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_the_pages_of_results_are_those_of_their_rows(path):
    rows = bench.read_rows(epath.Path(path))
    assert path.with_suffix(".md").read_text() == bench.render(rows)
    assert f"results/{path.stem}.md" in (RESULTS.parent / "README.md").read_text()

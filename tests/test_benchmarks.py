"""Benchmarks run, compare fairly, resume, and refuse what can't be measured. Nothing is timed."""

import json

import pytest
from benchmarks import raises_user_error
from etils import epath

from tp_jax.performance import bench, measure
from tp_jax.performance.benchmarks import BENCHMARKS
from tp_jax.performance.measure import Contender, Failed, Group
from tp_jax.performance.options import BenchOptions
from tp_jax.performance.peers import check_peers
from tp_jax.performance.standard import standard_config


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


def tiny(name="tiny", **options):
    config = standard_config(name)
    config.train.batch_size = 8
    config.prepare.batch_size = config.evaluation.batch_size = 8
    config.sampling.steps = 2
    what = options.pop("what", ("train",))
    return BenchOptions(what, config, repetitions=2, seconds=0.0, peers=(), **options)


SLOW = ("evaluate", "prepare")


@pytest.mark.parametrize(
    ("name", "what"),
    [*(("tiny", what) for what in BENCHMARKS if what not in SLOW), ("tiny-MMDiT", "forward")],
)
def test_every_benchmark_gives_rows(name, what):
    rows = bench.run_bench(tiny(name, what=(what,)))
    assert rows and all(row["what"] == what and "failed" not in row for row in rows)
    assert all(len(row["times"]) == 2 and row["seconds"]["median"] > 0 for row in rows)
    assert all(row["machine"]["versions"]["jax"] and row["date"] for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("what", SLOW)
def test_benchmarks_of_large_networks_give_rows(what):
    assert all(row["seconds"]["median"] > 0 for row in bench.run_bench(tiny(what=(what,))))


def test_a_killed_run_goes_on_and_the_report_holds_all(tmp_path, monkeypatch, capsys):
    files = dict(json=epath.Path(tmp_path / "a.json"), report=epath.Path(tmp_path / "a.md"))
    first = bench.run_bench(tiny(what=("forward",), **files))
    again = bench.run_bench(tiny(what=("forward", "sample"), **files))
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

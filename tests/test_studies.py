"""Studies: cells run once, survive kills and failures, and are shared by processes."""

import json
import os
import pathlib
import runpy
import signal
import subprocess
import sys
import threading
import time

import pytest
from conftest import snapshot
from etils import epath
from stand_in_commands import EXAMPLES, PYTHON, SHAPES, correct, request

from tp_jax.messages.errors import TrainingError, UserError
from tp_jax.studies.config_files import ConfigFile
from tp_jax.studies.folder import write_study
from tp_jax.studies.plan import Request, make_plan
from tp_jax.studies.run import Runner, run_study

ROOT = pathlib.Path(__file__).parents[1]
# Starts a study with the stand-in, as a process that can be killed.
START = f"""
import sys
sys.path.insert(0, {str(ROOT / "tests")!r})
from stand_in_commands import PYTHON, request
from tp_jax.studies import run
run.WAIT_SECONDS = 0.05
run.run_study(request(sys.argv[1]), PYTHON)
"""


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A function that runs a study; it returns its results and the calls of the commands."""
    record = tmp_path / "calls"
    monkeypatch.setenv("STAND_IN_CALLS", str(record))
    monkeypatch.setattr("tp_jax.studies.run.WAIT_SECONDS", 0.05)

    def run(study="compare", fails=False, keeps_calls=False, **fields):
        if not keeps_calls:
            record.write_text("")
        made = request(tmp_path / "out", study, **fields)
        if fails:
            with pytest.raises(TrainingError) as error:
                run_study(made, PYTHON)
            run.error = str(error.value)
        else:
            run_study(made, PYTHON)
        results = json.loads((made.out / f"{study}.json").read_text())
        return results, [json.loads(line) for line in record.read_text().splitlines()]

    return run


def test_a_study_trains_and_scores_every_cell_once(study, tmp_path):
    results, calls = study(jobs=3)
    out = tmp_path / "out"
    trained = [call for call in calls if call[0] == "tp_jax.main"]
    assert len(trained) == 6 and len(calls) == 12
    think = next(call for call in trained if "think/1" in " ".join(call))
    assert think == [
        "tp_jax.main", f"--config={SHAPES}:think", "--config.seed=1",
        f"--config.init.base={out}/cells/base/1/run", f"--workdir={out}/cells/think/1/run",
    ]  # fmt: skip
    # A cell that needs another one starts after it.
    order = [" ".join(call) for call in calls]
    scored = next(i for i, call in enumerate(order) if "scores/shapes/base/1" in call)
    assert scored < order.index(" ".join(think))
    for name, row in results["variants"].items():
        scores = {str(seed): sum(correct(name, seed)) / EXAMPLES for seed in (0, 1)}
        assert row["scores"]["shapes"] == pytest.approx(scores)
    (difference,) = (d for d in results["differences"]["shapes"] if d["variant"] == "think")
    pairs = [(sum(correct("think", s)) - sum(correct("base", s))) / EXAMPLES for s in (0, 1)]
    assert difference["mean"] == pytest.approx(sum(pairs) / 2)
    assert difference["examples"] == EXAMPLES and difference["seeds"] == 2
    # The commands that are shown are those that ran.
    shown = [c.removeprefix("python -m ") for row in results["commands"].values() for c in row]
    assert sorted(shown) == sorted(order)
    # The same command does nothing; one more seed runs only that.
    assert study()[1] == []
    _, calls = study(seeds=3)
    assert len(calls) == 6 and all("2" in call[-1] for call in calls if call[0] == "tp_jax.main")


def test_a_failed_cell_leaves_a_hole_and_is_tried_again(study, tmp_path, monkeypatch):
    monkeypatch.setenv("STAND_IN_FAILS", "lora/0 base/1")
    results, calls = study(fails=True)
    problems = {(h["variant"], h["seed"]): h["problem"] for h in results["holes"]}
    assert problems.keys() == {("lora", 0), ("base", 1), ("lora", 1), ("think", 1)}
    log = tmp_path / "out/cells/lora/0/log.txt"
    assert problems["lora", 0] == f"tp_jax.main ended with exit code 3; see {log}"
    assert log.read_text() == "a line of the log\n"
    assert problems["think", 1] == "it needs base, seed 1, which failed"
    assert study.error.startswith("4 of 6 cells have no scores")
    assert len(calls) == 6
    table = (tmp_path / "out/compare.md").read_text()
    assert f"- lora, seed 0: {problems['lora', 0]}" in table
    assert "| `lora` | plain LoRA with as many parameters as think | — |" in table
    assert "(1 of 2 seeds)" in table
    monkeypatch.delenv("STAND_IN_FAILS")
    results, calls = study()
    assert results["holes"] == [] and len(calls) == 8


def start(out):
    return subprocess.Popen(
        [sys.executable, "-c", START, str(out)],
        env=os.environ | {"STAND_IN_SLOW": "0.3"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
def test_a_killed_study_goes_on_and_processes_share_its_folder(study, tmp_path):
    out, calls = tmp_path / "out", tmp_path / "calls"
    process = start(out)
    wait_for(lambda: calls.exists() and len(calls.read_text().splitlines()) >= 3)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    time.sleep(0.5)  # The command that it had started ends by itself.
    done = len(list(out.glob("scores/*/*/*/scores.json")))
    assert 0 < done < 6
    before = calls.read_text().splitlines()
    process = start(out)
    results, _ = study(keeps_calls=True)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    after = [json.loads(line) for line in calls.read_text().splitlines()]
    # Every command ran once, but for the one that was killed.
    assert len({tuple(call) for call in after}) == 12
    assert len(after) <= 13 and len(after) - len(before) >= 6
    assert results["holes"] == []


def test_an_interrupted_study_ends_its_commands_and_goes_on(study, tmp_path, monkeypatch):
    calls = tmp_path / "calls"
    plan = make_plan(request(tmp_path / "out"))
    write_study(plan)
    runner = Runner(plan, PYTHON)
    monkeypatch.setenv("STAND_IN_SLOW", "60")
    thread = threading.Thread(target=runner.run)
    thread.start()
    wait_for(lambda: calls.exists() and calls.read_text())
    runner.stop()
    thread.join(30)
    assert not thread.is_alive() and len(calls.read_text().splitlines()) == 1
    # What was interrupted isn't a failure, and nobody holds its cell.
    assert not list(tmp_path.glob("out/cells/*/*/holder.json"))
    assert runner.problem_of(plan.cells[0]) is None
    monkeypatch.delenv("STAND_IN_SLOW")
    results, again = study()
    assert results["holes"] == [] and len(again) == 12


@pytest.mark.slow
def test_a_study_of_real_commands(tmp_path):
    """Train a base and fine-tune it, with and without Mod, in three processes."""
    fields = {
        "train.trainable": "thinking", "train.steps": 3, "train.batch_size": 8, "train.samples": 0,
        "optimizer.warmup_steps": 0, "optimizer.learning_rate": 1e-2, "train.ema_decay": 0.1,
        "model.depth": 2, "model.width": 16, "model.heads": 2,
        "model.thinking.layers": (1,), "validation.num": 32, "validation.every_steps": 0,
    }  # fmt: skip
    config = ConfigFile(str(ROOT / "configs" / "quickstart.py"), (), fields)
    made = Request("modulate", config, 1, epath.Path(tmp_path / "out"), suites=("validation",))
    run_study(made)
    results = json.loads((made.out / "modulate.json").read_text())
    assert results["holes"] == [] and list(results["variants"]) == ["base", "with", "without"]
    (difference,) = (d for d in results["differences"]["validation"] if d["variant"] == "without")
    assert difference["examples"] == 32
    assert difference["bootstrap"][0] <= difference["mean"] <= difference["bootstrap"][1]
    rows = results["variants"]
    assert rows["with"]["trained_parameters"] < rows["base"]["trained_parameters"]
    assert rows["with"]["minutes"]["train"] > 0 and results["devices"]
    for cell in ("with", "without"):
        stored = json.loads((made.out / f"cells/{cell}/0/run/config.json").read_text())
        assert stored["model"]["thinking"]["modulate"] == (cell == "with")
        assert stored["init"]["base"].endswith("cells/base/0/run")
    before = snapshot(made.out / "cells")
    run_study(made)
    assert snapshot(made.out / "cells") == before


def test_what_does_not_fit_the_folder_is_refused(study, tmp_path):
    study()
    for change, match in [
        (dict(study="gate", variants=("think",)), "has a study with --study=compare, not gate"),
        (dict(seeds=1), "with 2 seeds, not 1: give --seeds=2 or more"),
        (dict(variants=("large",)), "another config .base: .*: name another folder"),
        (dict(suites=("lake",)), "--suites=lake: choose from"),
        (dict(base="nowhere"), "--base=nowhere: only a config with config.train.trainable"),
    ]:
        with pytest.raises(UserError, match=match) as error:
            run_study(request(tmp_path / "out", **change), PYTHON)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="files but no study.json, so it wasn't created by tp_jax"):
        run_study(request(tmp_path), PYTHON)


def test_a_study_without_its_base_is_refused(tmp_path):
    made = request(tmp_path / "out", "gate", ("think",), base=str(tmp_path))
    with pytest.raises(UserError, match="has no trained base for seed 0, 1 of 2: it must have"):
        run_study(made, PYTHON)
    imagenet = ConfigFile(str(ROOT / "configs" / "imagenet256.py"))
    made = Request("gate", imagenet, 2, epath.Path(tmp_path / "out"), suites=("shapes",))
    with pytest.raises(UserError, match="init.base='checkpoints/dit-xl-2-256' doesn't exist"):
        run_study(made, PYTHON)
    assert not (tmp_path / "out").exists()


def test_a_given_base_is_used_by_every_seed(study, tmp_path):
    for seed in (0, 1):
        run = tmp_path / "bases" / str(seed) / "run"
        (run / "checkpoints").mkdir(parents=True)
        config = runpy.run_path(SHAPES)["get_config"]()
        (run / "config.json").write_text(json.dumps(config.to_dict()))
    _, calls = study("gate", variants=("think",), base=str(tmp_path / "bases"))
    trained = [call for call in calls if call[0] == "tp_jax.main"]
    assert len(trained) == 8
    for call in trained:
        seed = next(a for a in call if a.startswith("--config.seed="))[-1]
        assert f"--config.init.base={tmp_path}/bases/{seed}/run" in call

"""What may change when a run resumes: harmless fields; others with --allow_change; some never."""

import json
import shutil

import pytest
from bad_input_files import config_file
from conftest import tiny_config
from etils import epath

from tp_jax.config import default, flat
from tp_jax.diffusion import OBJECTIVES
from tp_jax.messages.errors import UserError
from tp_jax.models import MODELS
from tp_jax.train import loop
from tp_jax.workdir.changes import (
    ASK,
    FIXED,
    FREE,
    RULES,
    Facts,
    as_text,
    changed_facts,
    check_changes,
    rule_of,
    write_run,
)
from tp_jax.workdir.record import check_workdir, read_config

ALL = [flat(default(model, diffusion)) for model in MODELS for diffusion in OBJECTIVES]
# Sections whose fields all follow one rule; fields of the others are listed one by one.
WHOLE = {"checkpoint", "evaluation", "mesh", "optimizer", "prepare", "sampling", "text"} | {
    "diffusion",
    "log",
}


def test_every_config_field_has_one_rule():
    listed = [name for names in RULES.values() for name in names]
    assert len(listed) == len(set(listed))
    fields = {name for config in ALL for name in config}
    for name in fields:
        assert name in listed or name.partition(".")[0] in WHOLE, f"add {name} to RULES"
        assert rule_of(name) in (FREE, ASK, FIXED)
    assert not [name for name in listed if name not in fields | WHOLE]


@pytest.fixture
def workdir(trained, tmp_path):
    """The records of a run, without its checkpoints."""
    (tmp_path / "run").mkdir()
    for path in trained.glob("*.json"):
        shutil.copy(path, tmp_path / "run")
    return epath.Path(tmp_path / "run")


ASKED = {
    "seed": 1, "data.source": "synthetic", "data.split": "test", "diffusion.shift": 1.0,
    "train.condition_dropout": 0.0, "model.heads": 4, "model.thinking.latent_steps": 3,
    "data.flip": True, "init.base": "/base", "autoencoder.pool": 2, "validation.fraction": 0.1,
    "validation.seed": 1,
}  # fmt: skip
HARMLESS = {
    "train.steps": 9, "train.log_every": 1, "checkpoint.keep": 5, "train.samples": 2,
    "data.workers": 1, "data.dir": "/moved", "mesh.data": 2, "train.hang_seconds": 1.0,
    "optimizer.learning_rate": 1e-3, "sampling.steps": 4, "evaluation.suite": "adm",
    "autoencoder.path": "/moved", "text.path": "/moved", "model.attention": "pallas",
    "train.batch_size": 4, "validation.every_steps": 5, "validation.split": "test",
}  # fmt: skip


@pytest.mark.parametrize("name", [*ASKED, *HARMLESS])
def test_fields_that_make_another_run_must_be_allowed(name, workdir):
    config, value = tiny_config(), (ASKED | HARMLESS)[name]
    config.update_from_flattened_dict({name: value})
    allowed = {name, name.partition(".")[0]} if name in ASKED else set()
    if name in ASKED:
        old = flat(tiny_config())[name]
        with pytest.raises(UserError) as found:
            check_workdir(workdir, config)
        section = "diffusion" if name.startswith("diffusion") else name
        assert f"another config: {name}: {old!r} -> {value!r}; use the old" in str(found.value)
        assert f"go on with --allow_change={section}" in str(found.value)
    for names in [{item} for item in allowed] or [set()]:
        changes = check_workdir(workdir, config, names)
        assert [(change.name, change.new) for change in changes] == [(name, value)]


@pytest.mark.parametrize(
    ("allowed", "match"),
    [
        ("model.depth", "--allow_change=model.depth: the weights wouldn't fit"),
        ("config.train.trainable", "--allow_change=train.trainable: the weights wouldn't fit"),
        ("sead", "--allow_change=sead: there is no such field; name fields .* or classes, images"),
    ],
)
def test_wrong_names_are_refused(allowed, match, refused, workdir, tmp_path):
    flags = [f"--config={config_file(tmp_path)}", f"--workdir={workdir}"]
    refused("main", *flags, f"--allow_change={allowed}", match=match, watch=[workdir])


def test_shapes_never_change(workdir):
    config = tiny_config()
    config.model.depth, config.seed = 5, 1
    with pytest.raises(UserError, match=r"model.depth: 4 -> 5; use the old value or name a new"):
        check_workdir(workdir, config, {"model", "seed"})


FACTS = Facts(("a", "b", "c"), 30, "abc", {"plan": "p", "mean": [0.1], "std": [1.0]})


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"classes": ("a", "x", "c")}, r"classes: 'b \(1 of 3\)' -> 'x \(1 of 3\)'"),
        ({"classes": ("a", "b")}, r"classes: 'c \(2 of 3\)' -> '2 classes'"),
        ({"images": 31}, "images: 30 -> 31"),
        ({"autoencoder": None}, "autoencoder: 'abc' -> None"),
        ({"latents": FACTS.latents | {"plan": "q"}}, "latents: "),
        ({"latents": FACTS.latents | {"mean": [0.3]}}, "latents: "),
        ({"latents": FACTS.latents | {"mean": [0.101]}}, None),
        ({}, None),
    ],
)
def test_the_data_must_be_the_same(changed, match, tmp_path):
    workdir = epath.Path(tmp_path)
    assert changed_facts(workdir, FACTS) == []
    write_run(workdir, FACTS, [])
    found = changed_facts(workdir, Facts(**vars(FACTS) | changed))
    assert bool(found) == bool(match)
    if match:
        with pytest.raises(UserError, match=f"{match}.*--allow_change={found[0].name}$"):
            check_changes(workdir, found, set())
        check_changes(workdir, found, {found[0].name})
        write_run(workdir, FACTS, found)
        write_run(workdir, FACTS, [])
        (kept,) = json.loads((workdir / "run.json").read_text())["allowed"]
        assert kept["changes"] == [as_text(found[0])]


def test_an_allowed_change_is_remembered_and_an_old_workdir_gets_its_record(
    workdir, refused, monkeypatch, tmp_path
):
    """Training itself is left out: it would take seconds, and other tests have it."""
    monkeypatch.setattr(loop, "restore", lambda *_, **__: loop.Start(None, 0, 0.0, None))
    monkeypatch.setattr(loop, "_loop", lambda checked, *_: (checked.config.train.steps, None))
    stored = json.loads((workdir / "run.json").read_text())
    assert (stored["classes"][3], stored["images"]) == ("3", 1797) and stored["allowed"] == []
    (workdir / "run.json").unlink()
    config = tiny_config()
    loop.train(config, workdir)
    assert json.loads((workdir / "run.json").read_text()) == stored
    config.seed = 7
    with pytest.raises(UserError, match="seed: 0 -> 7; .*--allow_change=seed"):
        loop.train(config, workdir)
    for _ in range(2):  # The same command resumes.
        loop.train(config, workdir, allow_change=["seed"])
        assert read_config(workdir).seed == 7
        (change,) = json.loads((workdir / "run.json").read_text())["allowed"]
        assert change["changes"] == ["seed: 0 -> 7"]
    stored["classes"][3] = "three"
    (workdir / "run.json").write_text(json.dumps(stored))
    arguments = [f"--config={config_file(tmp_path)}", f"--workdir={workdir}", "--config.seed=7"]
    refused("main", *arguments, match=r"classes: 'three \(3 of 10\)' -> '3 \(3 of 10\)'; use the")

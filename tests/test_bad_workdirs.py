"""Folders that are not a workdir or base, or belong to another model, are refused."""

import json
import re
import shutil

import jax
import jax.numpy as jnp
import pytest
from bad_input_files import config_file, make_foreign
from conftest import tiny_config
from etils import epath

from tp_jax.files.orbax import save_weights
from tp_jax.messages.errors import UserError
from tp_jax.train import loop
from tp_jax.workdir import record as workdir
from tp_jax.workdir.checkpoints import load_base


@pytest.mark.parametrize(
    ("kind", "match"),
    [
        ("none", "has no config.json: name the workdir of a run"),
        ("empty", "has no config.json: name the workdir of a run"),
        ("foreign", "has no config.json: name the workdir of a run"),
        ("begun", "no checkpoint in .*: train there first"),
        ("broken", "config.json can't be read as a config.*name another workdir"),
        ("other version", 'config.json can\'t be read as a config.*"old".*name another workdir'),
    ],
)
def test_sampling_from_a_folder_that_is_no_workdir_is_refused(kind, match, refused, tmp_path):
    folder, config = tmp_path / "place" / "run", tiny_config().to_dict()
    if kind == "foreign":
        make_foreign(folder)
    elif kind != "none":
        folder.mkdir()
    if kind == "begun":
        (folder / "config.json").write_text(json.dumps(config))
    if kind == "broken":
        (folder / "config.json").write_text("{")
    if kind == "other version":
        config["train"]["old"] = 1
        (folder / "config.json").write_text(json.dumps(config))
    out = tmp_path / "place" / "out.npz"
    refused("sample", f"--workdir={folder}", f"--out={out}", match=match)


def test_training_in_a_folder_that_is_no_workdir_is_refused(refused, tmp_path):
    config = config_file(tmp_path)
    foreign = make_foreign(tmp_path / "place" / "foreign")
    match = "foreign holds files but no config.json.*name a new or empty folder"
    refused("main", f"--config={config}", f"--workdir={foreign}", match=match)
    file = foreign / "thesis.txt"
    match = "thesis.txt is a file: name a folder"
    refused("main", f"--config={config}", f"--workdir={file}", match=match)


def test_write_workdir_refuses_a_path_that_cannot_be_created(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--workdir=.*can't be created.*name another"):
        workdir.write_workdir(epath.Path(tmp_path / "file" / "new"), tiny_config())


def test_training_in_a_workdir_that_cannot_be_created_is_refused(refused, tmp_path):
    (tmp_path / "place" / "file").touch()
    arguments = [f"--config={config_file(tmp_path)}", f"--workdir={tmp_path / 'place/file/new'}"]
    refused("main", *arguments, match="--workdir=.*can't be created.*name another")


def test_config_is_written_before_the_checkpoint_folder(tmp_path, monkeypatch):
    def killed(*arguments):
        assert (tmp_path / "run" / workdir.CONFIG).exists()
        raise InterruptedError

    monkeypatch.setattr(loop, "Checkpoints", killed)
    with pytest.raises(InterruptedError):
        loop.train(tiny_config(), epath.Path(tmp_path / "run"))
    assert [path.name for path in (tmp_path / "run").iterdir() if path.is_dir()] == []


def test_folder_with_only_a_half_written_config_counts_as_new(tmp_path):
    (tmp_path / f"{workdir.CONFIG}.tmp").write_text("{")
    assert workdir.check_workdir(epath.Path(tmp_path), tiny_config()) == []


@pytest.mark.parametrize(
    ("override", "match"),
    [
        ("model.depth=5", "another config: model.depth: 4 -> 5; use the old value or name"),
        ("model.thinking.rank=3", "another config: model.thinking.rank: 2 -> 3;"),
        ("diffusion.shift=1", "another config: diffusion.shift: 3.0 -> 1.0;"),
        ("init.base=/somewhere", "another config: init.base: '' -> '/somewhere'"),
    ],
)
def test_resuming_with_another_model_is_refused(override, match, refused, trained, tmp_path):
    arguments = [f"--config={config_file(tmp_path)}", f"--workdir={trained}"]
    refused("main", *arguments, f"--config.{override}", match=match, watch=[trained])


@pytest.mark.parametrize(
    ("kind", "match"),
    [("none", "there is no such folder; name a base"), ("foreign", "neither a base checkpoint")],
)
def test_missing_or_foreign_base_is_refused(kind, match, refused, tmp_path):
    folder = tmp_path / "place" / "base"
    if kind == "foreign":
        make_foreign(folder)
    # An empty folder must stay empty: with files in it, the next start would refuse it.
    (tmp_path / "place" / "new").mkdir()
    arguments = [f"--config={config_file(tmp_path)}", f"--workdir={tmp_path / 'place' / 'new'}"]
    refused("main", *arguments, f"--config.init.base={folder}", match=f"{folder}.*{match}")


BASE = {"blocks": {"kernel": jnp.zeros((2, 3))}, "final": {"bias": jnp.zeros(3)}}


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases") / "base"
    save_weights(epath.Path(folder), BASE)
    return folder


@pytest.mark.parametrize(
    ("wanted", "match"),
    [
        (BASE | {"norm": {"scale": jnp.zeros(3)}}, "norm/scale is missing; set config.model"),
        ({"blocks": BASE["blocks"]}, "final/bias is left over; set config.model"),
        (
            BASE | {"final": {"bias": jnp.zeros(4)}},
            r"final/bias has shape \(3,\), the model expects \(4,\)",
        ),
        ({"blocks": {"bias": jnp.zeros(3)}, "final": BASE["final"]}, r"\(and 1 more\)"),
    ],
)
def test_base_that_does_not_fit_the_model_is_refused(wanted, match, base_folder):
    with pytest.raises(UserError, match=f"{re.escape(str(base_folder))} doesn't fit .*{match}"):
        load_base(str(base_folder), jax.eval_shape(lambda: wanted))


def test_base_may_be_a_relative_path(base_folder, monkeypatch):
    monkeypatch.chdir(base_folder.parent)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), BASE
    )
    found = load_base(base_folder.name, wanted)
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), found, BASE))


def test_damaged_base_is_refused(base_folder, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(base_folder, broken)
    (broken / "_METADATA").write_text("?")
    with pytest.raises(UserError, match="broken is damaged or not a checkpoint.*use another"):
        load_base(str(broken), jax.eval_shape(lambda: BASE))


def test_bucket_path_is_passed_on_unchanged(monkeypatch):
    seen = []
    monkeypatch.setattr(type(epath.Path("gs://x")), "exists", lambda path: seen.append(str(path)))
    with pytest.raises(UserError, match="gs://bucket/base: there is no such folder"):
        load_base("gs://bucket/base", BASE)
    assert seen == ["gs://bucket/base"]

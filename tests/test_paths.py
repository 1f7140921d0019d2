"""Paths in flags, config fields and Python: the home folder, variables, and what is refused."""

import os
import pathlib

import pytest
from bad_input_files import config_file
from conftest import run_entry, tiny_config
from etils import epath

from tp_jax import Model
from tp_jax import config as config_lib
from tp_jax.files.outputs import is_output_file, output_file, output_folder
from tp_jax.messages.errors import UserError
from tp_jax.values.config_fields import ALLOWED
from tp_jax.values.kinds import Path
from tp_jax.values.texts import read_path


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder, which is also in the variable TP_JAX_PLACE; the current folder is another."""
    (tmp_path / "home").mkdir()
    (tmp_path / "current").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TP_JAX_PLACE", str(tmp_path / "home"))
    monkeypatch.delenv("TP_JAX_UNSET", raising=False)
    monkeypatch.chdir(tmp_path / "current")
    return tmp_path / "home"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("~", "{home}"),
        ("~/x", "{home}/x"),
        ("~root/x", os.path.expanduser("~root/x")),
        ("$TP_JAX_PLACE/x", "{home}/x"),
        ("${TP_JAX_PLACE}/x", "{home}/x"),
        ("x/~/y", "x/~/y"),
        ("a$/b", "a$/b"),
        ("x/", "x/"),
        ("run-1.5", "run-1.5"),
        ("my runs/é🙂", "my runs/é🙂"),
        ("gs://bucket/~/$x", "gs://bucket/~/$x"),
        ("", ""),
    ],
)
def test_paths_are_expanded(given, expected, home):
    assert read_path(given) == expected.format(home=home)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ("~nobody-of-this-name/x", "the home folder of ~nobody-of-this-name isn't known"),
        ("$TP_JAX_UNSET/x", "variable 'TP_JAX_UNSET' isn't set"),
        ("${TP_JAX_UNSET}/x", "variable 'TP_JAX_UNSET' isn't set"),
        ("file:///x", "file:// isn't supported: give a local path, such as /x,"),
        ("https://host/x", "https:// isn't supported: give a local path or gs://"),
        ("hf://host/x", "hf:// isn't supported"),
        ("C:\\runs", "backslash: write / between"),
        ("runs\\x", "backslash"),
        ("'x'", "has quotes"),
        ('"x"', "has quotes"),
        (" x", "begins or ends with a space"),
        ("x ", "begins or ends with a space"),
        ("x\n", "has the character"),
        ("a\0b", "has the character"),
        ("a\x1bb", "has the character"),
        ("\udcff", "has the character"),
        ("x" * 256, "more than 255 bytes"),
        ("é" * 128, "more than 255 bytes"),
        ("x/" * 3000, "4096 bytes or more"),
        ("None", "no field takes None"),
    ],
)
def test_paths_that_cannot_work_are_refused(given, match, home):
    with pytest.raises(ValueError, match=match):
        read_path(given)


# Every path flag and path field


def test_a_path_flag_is_expanded(home, monkeypatch):
    found = []
    monkeypatch.setattr(
        "tp_jax.train.loop.train", lambda config, workdir, **options: found.append(workdir)
    )
    monkeypatch.setattr("tp_jax.sampling.draw.draw_samples", found.append)
    monkeypatch.setattr("tp_jax.pretrained.convert.convert", found.append)
    config_file(home)
    config = "--config=~/configs/config.py"
    assert run_entry("main", config, "--workdir=~/run")[0] == 0
    assert run_entry("sample", "--workdir=~/run", "--out=$TP_JAX_PLACE/x.npz", "--text=~/t")[0] == 0
    convert = ["--kind=dit", "--source=~/w.pt", "--out=~/out"]
    assert run_entry("convert", *convert)[0] == 0
    workdir, drawing, conversion = found
    assert str(workdir) == f"{home}/run"
    assert (str(drawing.out), drawing.text) == (f"{home}/x.npz", f"{home}/t")
    assert (str(conversion.source), str(conversion.out)) == (f"{home}/w.pt", f"{home}/out")
    assert not list(pathlib.Path().iterdir())


@pytest.mark.parametrize("field", ALLOWED[Path])
def test_a_path_field_is_expanded_in_every_config(field, home):
    config = tiny_config()
    config.update_from_flattened_dict({field: "~/x"})
    config_lib.build(config)
    assert config_lib.flat(config)[field] == f"{home}/x"
    config.update_from_flattened_dict({field: "x"})
    config_lib.build(config)
    # A relative path stays one, so that a workdir can be moved with what it refers to.
    assert config_lib.flat(config)[field] == "x"


def test_a_workdir_in_the_home_folder_is_loaded_in_python(trained, home):
    (home / "run").symlink_to(trained)
    model = Model.load("~/run")
    assert model.train_step == 6
    with pytest.raises(UserError, match="^workdir='~nobody-of-this-name': the home folder"):
        Model.load("~nobody-of-this-name")
    with pytest.raises(UserError, match="^autoencoder='file:///x': file:// isn't"):
        Model.load("~/run", autoencoder="file:///x")


# Outputs: a file or a folder


@pytest.mark.parametrize("name", ["one.png", "s.npy", "x.jpg", "x.ZIP", "x.json", "a.tar.gz",
                                  "x.heic", "x.mov", "x.docx", "x.gguf"])  # fmt: skip
def test_samples_are_not_written_to_other_files(name, home, trained, refused):
    match = rf"--out={name}: give FILE.npz or a folder"
    refused("sample", f"--workdir={trained}", f"--out={name}", match=match, watch=[home.parent])


def test_outputs_are_told_from_their_endings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old.png").mkdir()
    (tmp_path / "file").touch()
    for name, as_file in (("s.npz", True), ("S.NPZ", True), ("s.Npz", True), ("run-1.5", False),
                          ("x", False), ("old.png", False), ("step.0001", False)):  # fmt: skip
        assert is_output_file("--out", epath.Path(name), ".npz") == as_file
    assert output_folder("--out", epath.Path("old.png")).name == "old.png"
    assert output_file("--json", epath.Path("X.JSON"), ".json").name == "X.JSON"
    for wrong in ("x.npz", "x", "old.png", "x.json.gz"):
        with pytest.raises(UserError, match=f"^--json={wrong}.*name a file FILE.json"):
            output_file("--json", epath.Path(wrong), ".json")
    for wrong in ("x.npz", "file", "x.PNG"):
        with pytest.raises(UserError, match=f"^--out={wrong}.*name a folder"):
            output_folder("--out", epath.Path(wrong))


@pytest.mark.parametrize(
    ("module", "arguments", "match"),
    [
        ("main", ["--config={config}", "--workdir=run.json"], "--workdir=run.json: name a folder"),
        ("prepare", ["--config={config}", "--workdir=x.npz"], "--workdir=x.npz: name a folder"),
        ("prepare", ["--config={config}"], "--workdir is missing: folder for the latents"),
        (
            "prepare", ["--config={config}", "--config.data.dir=x.zip"],
            "config.data.dir=x.zip: name a folder",
        ),
        ("convert", ["--kind=dit", "--source=x.pt", "--out=o.pt"], "--out=o.pt: name a folder"),
        ("bench", ["--what=prepare", "--json=x.txt"], "--json=x.txt: name a file FILE.json"),
        ("aot", ["--config={config}", "--topology=v5e:4x4", "--json=x"], "--json=x: name a file"),
        (
            "evaluate", ["--samples=s.npz", "--reference=r.npz", "--inception=i", "--out=x.png"],
            "--out=x.png: name a file FILE.json",
        ),
        (
            "evaluate", ["--samples=s.npz", "--inception=i", "--save_statistics=x"],
            "--save_statistics=x: name a file FILE.npz",
        ),
        (
            "evaluate",
            ["--sweep", "--workdir=w", "--reference=r", "--inception=i", "--out=o.json"],
            "--out=o.json: name a folder",
        ),
        ("evaluate", ["--suite=dpg", "--results=r.txt", "--out=o"], "--out=o: name a file"),
        ("evaluate", ["--suite=shapes", "--collect=c", "--out=o"], "--out=o: name a file"),
        (
            "evaluate", ["--suite=frozenlake", "--workdir=w", "--out=o.json"],
            "--out=o.json: name a folder",
        ),
    ],
)  # fmt: skip
def test_outputs_of_the_wrong_kind_are_refused(module, arguments, match, home, refused):
    config = config_file(home)
    arguments = [each.format(config=config) for each in arguments]
    refused(module, *arguments, match=match, watch=[home.parent])

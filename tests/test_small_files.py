"""Damaged small files: one line names the file, and no checkpoint passes unchecked."""

import json
import re
import shutil

import pytest
from bad_input_files import config_file
from conftest import run_entry, tiny_config
from etils import epath

from tp_jax.data.prepare import start_folder
from tp_jax.data.sources.latents import read_header
from tp_jax.evals.adm.sweep import CELL
from tp_jax.files.jsonl import read_json
from tp_jax.messages.errors import UserError
from tp_jax.sampling.description import claim
from tp_jax.sampling.loaded import load
from tp_jax.train import checkpoint
from tp_jax.workdir.checkpoints import _check_same_model, find_step, load_base, open_manager
from tp_jax.workdir.integrity import PENDING, file_checksums, read_checksums
from tp_jax.workdir.record import read_config, read_text_space


def make_folder(path):
    path.unlink()
    path.mkdir()


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(64)),
    "binary": lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n\xff\xfe"),
    "not UTF-8": lambda path: path.write_bytes('{"a": "ä"}'.encode("latin-1")),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-3]),
    "cut to a line": lambda path: path.write_bytes(path.read_bytes()[:1]),
    "list": lambda path: path.write_text("[1, 2]"),
    "number": lambda path: path.write_text("3"),
    "null": lambda path: path.write_text("null"),
    "string": lambda path: path.write_text('"text"'),
    "deeply nested": lambda path: path.write_text("[" * 100_000),
    "pointer": lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"),
    "folder": make_folder,
}
OTHER_JSON = {
    "no fields": lambda path: path.write_text("{}"),
    "wrong types": lambda path: path.write_text(
        json.dumps({key: [None, "x"] for key in json.loads(path.read_text())})
    ),
}
TEXT = {"identity": "a", "tokens": 8, "width": 4, "pooled_width": 4}
READERS = {
    "config.json": (tiny_config().to_dict(), lambda path: read_config(path.parent)),
    "text.json": (TEXT, lambda path: read_text_space(path.parent)),
    "checksums/8.json": ({"a": [1, 2]}, lambda path: read_checksums(path.parent.parent, 8)),
    "description.json": (
        {"config": {"heads": 2}},
        lambda path: _check_same_model(str(path.parent), {"heads": 2}),
    ),
    "header.json": ({"plan": {"format": 1}, "mean": [0]}, lambda path: read_header(path.parent)),
    "plan.json": ({"source": "a", "autoencoder": {}}, lambda path: start_folder(path.parent, None)),
    "drawing.json": (
        {"seed": 0, "files": []},
        lambda path: claim(path.parent, path, {"seed": 0, "files": []}),
    ),
    "cell.json": (
        {"series": "base", "guidance_scale": 1, "count": 2},
        lambda path: read_json(path, CELL),
    ),
}


@pytest.mark.parametrize("damage", [*DAMAGE, *OTHER_JSON])
@pytest.mark.parametrize("name", READERS)
def test_a_damaged_small_file_is_one_line(name, damage, tmp_path):
    content, read = READERS[name]
    path = epath.Path(tmp_path / name)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2))
    (DAMAGE | OTHER_JSON)[damage](path)
    if (name, damage) == ("checksums/8.json", "no fields"):
        return  # All files of the checkpoint are left over then.
    with pytest.raises(UserError) as found:
        read(path)
    message = str(found.value)
    assert len(message.splitlines()) == 1 and len(message) < 500, message
    assert path.name in message or name == "drawing.json"


def test_an_unreadable_file_is_one_line(monkeypatch, tmp_path):
    path = epath.Path(tmp_path / "a.json")
    with pytest.raises(UserError, match="a.json: there is no such file; make it"):
        read_json(path, remedy="make it")
    path.write_text("{}")
    denied = PermissionError(13, "Permission denied", str(path))

    def deny(path):
        raise denied

    monkeypatch.setattr(type(path), "read_bytes", deny)
    with pytest.raises(UserError, match=r"a.json is damaged \(Permission denied\); make it"):
        read_json(path, remedy="make it")


@pytest.fixture
def workdir(trained, tmp_path):
    """A copy of a trained workdir with checkpoints 3 and 6."""
    return shutil.copytree(trained, tmp_path / "place" / "run")


@pytest.fixture
def resumed_at(monkeypatch):
    """A function that returns the train step from which training would resume."""
    monkeypatch.setattr(checkpoint, "restore", lambda manager, step, abstract: step)

    def resume(workdir, **options):
        with checkpoint.Checkpoints(epath.Path(workdir), tiny_config().checkpoint) as checkpoints:
            return checkpoints.restore_newest(None, **options)

    return resume


CHECKSUM_DAMAGE = DAMAGE | {
    "deleted": lambda path: path.unlink(),
    "wrong types": lambda path: path.write_text('{"a": [1, true]}'),
    "no fields": lambda path: path.write_text("{}"),
    "pending cut": lambda path: path.write_text(json.dumps(PENDING)[:-1]),
}


@pytest.mark.parametrize("damage", CHECKSUM_DAMAGE)
def test_a_checkpoint_without_readable_checksums_is_set_aside(damage, workdir, resumed_at, capsys):
    CHECKSUM_DAMAGE[damage](workdir / "checksums" / "6.json")
    match = r"6 in .* is damaged \(.*--checkpoint=N, from 3, 6"
    with open_manager(epath.Path(workdir)) as manager, pytest.raises(UserError, match=match):
        find_step(manager)
    assert resumed_at(workdir) == 3
    assert re.search(
        r"checkpoint 6 is damaged \(.*\): moved to .*/damaged", capsys.readouterr().err
    )
    assert (workdir / "damaged" / "6_0").is_dir()


def test_a_damaged_checkpoint_of_a_base_is_refused_with_a_remedy_for_training(workdir):
    (workdir / "checkpoints" / "6" / "ema" / "_METADATA").write_text("{}")
    with pytest.raises(UserError, match="6 in .* is damaged .*: give another base, or move"):
        load_base(str(workdir), {})


def test_only_the_flag_admits_checkpoints_without_checksums(workdir, resumed_at):
    shutil.rmtree(workdir / "checksums")
    match = "no checkpoint in .*run can be checked: .*checksums/6.json.*; --allow_unchecked uses"
    with pytest.raises(UserError, match=match):
        resumed_at(workdir)
    # Nothing was moved, so that the flag finds everything in place.
    assert not (workdir / "damaged").exists()
    with pytest.raises(UserError, match="--allow_unchecked uses checkpoint 6 without a check"):
        load(epath.Path(workdir))
    assert load(epath.Path(workdir), allow_unchecked=True).train_step == 6
    assert resumed_at(workdir, allow_unchecked=True) == 6
    # From now on, the checkpoint can be checked.
    assert read_checksums(epath.Path(workdir), 6)
    assert resumed_at(workdir) == 6


def test_a_checkpoint_whose_run_was_killed_before_its_checksums_is_used(workdir, resumed_at):
    (workdir / "checksums" / "6.json").write_text(json.dumps(PENDING))
    assert load(epath.Path(workdir)).train_step == 6
    assert resumed_at(workdir) == 6
    assert read_checksums(epath.Path(workdir), 6)


def test_a_checkpoint_of_an_early_version_needs_no_checksums(workdir, resumed_at):
    (workdir / "checksums" / "6.json").unlink()
    progress = workdir / "checkpoints" / "6" / "progress" / "metadata"
    fields = json.loads(progress.read_text())
    assert fields.pop("has_checksums")
    progress.write_text(json.dumps(fields))
    assert load(epath.Path(workdir)).train_step == 6
    assert resumed_at(workdir) == 6
    assert read_checksums(epath.Path(workdir), 6)


def test_checksums_are_removed_with_their_checkpoints(workdir, resumed_at):
    for name in ("1.json", "2.json"):
        shutil.copy(workdir / "checksums" / "6.json", workdir / "checksums" / name)
    (workdir / "checksums" / "6.json").write_text(json.dumps(PENDING))
    assert resumed_at(workdir) == 6
    assert {path.name for path in (workdir / "checksums").iterdir()} == {"3.json", "6.json"}


@pytest.mark.parametrize("entry", ["main", "sample"])
@pytest.mark.parametrize("damage", ["binary", "folder", "wrong types"])
def test_a_damaged_config_ends_a_command_with_one_line(entry, damage, workdir, tmp_path):
    (DAMAGE | OTHER_JSON)[damage](workdir / "config.json")
    arguments = [f"--workdir={workdir}"]
    arguments += ["--out=x.npz"] if entry == "sample" else [f"--config={config_file(tmp_path)}"]
    code, _, stderr = run_entry(entry, *arguments)
    assert code == 2 and len(stderr.splitlines()) == 1, stderr
    assert "config.json can't be read as a config" in stderr


def test_a_link_to_nothing_in_a_checkpoint_counts_as_missing(tmp_path):
    (tmp_path / "array").symlink_to(tmp_path / "moved")
    (tmp_path / "progress").write_bytes(b"{}")
    assert list(file_checksums(epath.Path(tmp_path))) == ["progress"]

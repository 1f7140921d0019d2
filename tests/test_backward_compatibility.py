"""Files of revision bbe81de still work, or are refused with an error that says what to do.

`golden/make_before_rooms.py` wrote the files, with that revision's module layout and config keys.
"""

import json
import pathlib
import tarfile

import numpy as np
import pytest
from bad_input_files import config_file
from conftest import run_entry
from etils import epath
from resuming import FakeWriter

from tp_jax.data.prepare import start_folder
from tp_jax.data.sources.latents import open_latents
from tp_jax.messages.renamed import CONFIG_KEYS, config_key_hint
from tp_jax.train import metrics
from tp_jax.train.loop import train
from tp_jax.workdir.record import read_config

ARCHIVE = pathlib.Path(__file__).parent / "golden" / "before_rooms.tar.xz"


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """The unpacked files; requests for samples name their workdirs in the unpacked folder."""
    place = tmp_path_factory.mktemp("before")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(place, filter="data")
    folder = place / "before_rooms"
    for path in (folder / "images.drawing.json", folder / "out.npz.parts" / "drawing.json"):
        fields = json.loads(path.read_text())
        fields["workdir"] = str(folder / pathlib.Path(fields["workdir"]).name)
        path.write_text(json.dumps(fields))
    return folder


def arrays(path):
    with np.load(path) as file:
        return file["arr_0"].astype(int), file["arr_1"]


def test_old_workdir_gives_the_same_samples(before, tmp_path):
    out = tmp_path / "again.npz"
    arguments = [f"--workdir={before / 'digits'}", "--num=12", "--batch_size=4"]
    code, _, stderr = run_entry("sample", *arguments, f"--out={out}")
    assert code == 0, stderr
    found, wanted = arrays(out), arrays(before / "whole.npz")
    assert np.abs(found[0] - wanted[0]).max() <= 1
    np.testing.assert_array_equal(found[1], wanted[1])


def test_interrupted_sampling_resumes(before):
    parts = before / "out.npz.parts"
    assert len(list(parts.glob("*.npy"))) == 2
    arguments = [f"--workdir={before / 'digits'}", "--num=12", "--batch_size=4"]
    code, _, stderr = run_entry("sample", *arguments, f"--out={before / 'out.npz'}")
    assert code == 0, stderr
    assert np.abs(arrays(before / "out.npz")[0] - arrays(before / "whole.npz")[0]).max() <= 1
    assert not parts.exists()


def test_training_resumes(before, capsys, monkeypatch):
    monkeypatch.setattr(metrics, "TensorBoardWriter", lambda workdir: FakeWriter())
    workdir = epath.Path(before / "digits")
    config = read_config(workdir)
    assert config.evaluation.adm.num == 12
    config.train.steps = 4
    train(config, workdir)
    stderr = capsys.readouterr().err
    assert "resuming from the checkpoint of train step 3" in stderr
    assert stderr.count("changed since the last start") == stderr.count("train.steps: 3 -> 4") == 1
    assert (workdir / "checkpoints" / "4").exists()


def test_workdir_with_the_old_navigation_section_is_evaluated(before, tmp_path):
    assert "navigation" in json.loads((before / "lake/config.json").read_text())
    assert read_config(epath.Path(before / "lake")).frozenlake.sizes == (3, 4)
    arguments = ["--suite=frozenlake", f"--workdir={before / 'lake'}", "--num=1", "--batch_size=4"]
    code, _, stderr = run_entry("evaluate", *arguments, f"--out={tmp_path / 'out'}")
    assert code == 0, stderr


def test_interrupted_image_generation_resumes(before):
    assert read_config(epath.Path(before / "shapes")).shapes.difficulty == "hard"
    images = before / "images"
    kept = {path: path.stat().st_mtime_ns for path in images.rglob("*.png")}
    assert len(kept) == 4
    arguments = [f"--workdir={before / 'shapes'}", "--num=6", "--batch_size=4", "--sampler_steps=1"]
    code, _, stderr = run_entry(
        "evaluate", "--suite=shapes", "--make", *arguments, f"--out={images}"
    )
    assert code == 0, stderr
    assert len(list(images.rglob("*.png"))) == 6
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_latents_are_read_and_their_preparation_resumes(before):
    source = open_latents(str(before / "latents"))
    assert len(source.records) == 4 and source.class_names == ("class0", "class1")
    example = source.decoder(8, False)(source.records[0], np.random.default_rng(0))
    assert example["x"].shape == (8, 8, 4) and np.isfinite(example["x"]).all()
    start_folder(epath.Path(before / "latents"), source.header.plan)


def test_scores_are_collected(before, tmp_path):
    out = tmp_path / "frozenlake.json"
    arguments = ["--suite=frozenlake", f"--collect={before / 'scores'}", f"--out={out}"]
    code, stdout, _ = run_entry("evaluate", *arguments)
    assert code == 0 and "| all goal | 25.0 ± 0.0 |" in stdout


def test_old_suite_name_is_refused_with_the_new_name(refused):
    refused("evaluate", "--suite=navigation", match="--suite=navigation.* is called frozenlake now")


@pytest.mark.parametrize("old", CONFIG_KEYS)
def test_old_config_keys_are_refused_with_the_new_names(old, refused, tmp_path):
    wanted = f"config.{old} is called config.{CONFIG_KEYS[old]} now"
    config = f"--config={config_file(tmp_path)}"
    flags = [config, f"--config.{old}=1", f"--workdir={tmp_path / 'place' / 'run'}"]
    refused("main", *flags, match=wanted)
    in_file = config_file(tmp_path, f"config.{old} = 1", name="old.py")
    flags = [f"--config={in_file}", f"--workdir={tmp_path / 'place' / 'run'}"]
    refused("main", *flags, match=wanted)
    assert config_key_hint(f"{old}.more").endswith(".more now")


def test_other_unknown_keys_get_no_hint(refused, tmp_path):
    in_file = config_file(tmp_path, "config.model.m = 3")
    flags = [f"--config={in_file}", f"--workdir={tmp_path / 'place' / 'run'}"]
    refused("main", *flags, match=r"error: (?!.*is called)")


def test_config_file_that_updates_an_old_section_is_refused(refused, tmp_path):
    in_file = config_file(tmp_path, "config.navigation.update(tile=16)")
    flags = [f"--config={in_file}", f"--workdir={tmp_path / 'place' / 'run'}"]
    refused("main", *flags, match="config.navigation is called config.frozenlake now")

"""Mistakes of users end with a one-line error that says what is right, and change no file."""

import dataclasses
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
from bad_input_files import config_file, make_foreign
from conftest import snapshot, tiny_config
from etils import epath

from tp_jax import config as config_lib
from tp_jax import data
from tp_jax.data.source import Source
from tp_jax.messages.errors import UserError
from tp_jax.models import build_model
from tp_jax.sampling import loaded as loading
from tp_jax.sampling import request
from tp_jax.sampling.generator import choose_labels

TESTS = pathlib.Path(__file__).parent


@pytest.fixture
def refused_config(refused, tmp_path):
    """Like `refused`, for training with config overrides in a workdir that doesn't exist."""

    def check(*overrides, match, file=None):
        file = file or config_file(tmp_path)
        new = tmp_path / "place" / "new"
        refused("main", f"--config={file}", f"--workdir={new}", *overrides, match=match)

    return check


# Flags and config files


@pytest.mark.parametrize(
    ("module", "arguments", "match"),
    [
        ("main", ["--config={config}", "--workdir={new}", "--steps=3"], "flag 'steps'.*--help"),
        ("main", ["--config={config}", "--wrkdir={new}"], "'wrkdir'. Did you mean: workdir"),
        ("main", ["--config={config}", "--workdir={new}", "more"], "argument 'more'.*--name=value"),
        ("main", ["--workdir={new}"], "--config is missing.*configs/quickstart.py"),
        ("main", ["--workdir={new}", "--config.seed=1"], "flag 'config.seed'.*--help"),
        ("main", ["--config={config}"], "--workdir is missing: folder for"),
        ("main", ["--config={config}", "--workdir="], "--workdir is missing: folder for"),
        ("evaluate", ["--flagfile=nowhere"], "--flagfile can't be read: .*'nowhere'"),
        ("main", ["--flagfile=nowhere"], "--flagfile can't be read: .*'nowhere'"),
        ("main", ["--flagfile={binary}"], "--flagfile can't be read: .*codec"),
        ("sample", ["--flagfile={new}/.."], "--flagfile can't be read"),
        ("sample", ["--out={new}"], "--workdir is missing: workdir of a training run"),
        ("sample", ["--workdir={new}"], "--out is missing: FILE.npz, or a folder"),
        ("sample", ["--workdir={new}", "--out={new}", "--nums=3"], "'nums'. Did you mean: num"),
        ("sample", ["--workdir={new}", "--out={new}", "--num=many"], "--num=many.*int"),
        ("sample", ["--workdir={new}", "--out={new}", "--labels=1,x"], "--labels=1,x.*whole"),
        ("sample", ["--workdir={new}", "--out={new}", "--labels=1.5"], "--labels=1.5.*whole"),
    ],
)
def test_wrong_flags_are_refused(module, arguments, match, refused, tmp_path):
    (tmp_path / "binary").write_bytes(b"--seed=\xff\n")
    names = dict(config=config_file(tmp_path), new=tmp_path / "place" / "new")
    names["binary"] = tmp_path / "binary"
    refused(module, *(argument.format(**names) for argument in arguments), match=match)


@pytest.mark.parametrize("override", [[], ["--config.train.steps=3"], ["--config.a.b=3"]])
def test_missing_config_file_is_refused(override, refused_config, tmp_path):
    file = tmp_path / "nowhere.py"
    refused_config(*override, file=file, match="No such file.*nowhere.py'; name a config file")


@pytest.mark.parametrize(
    ("override", "match"),
    [
        ("--config.a.b=3", "--config.a.b: config has no 'a'; known: autoencoder, checkpoint"),
        ("--config.train.stepz=3", "config.train has no 'stepz'; did you mean 'steps'"),
        ("--config.model.thinking.layer=3", "thinking has no 'layer'; did you mean 'layers'"),
        ("--config.train=3", "config.train=3"),
        ("--config.train.steps=soon", "config.train.steps=soon.*int"),
        ("--config.train.steps=1.5", "config.train.steps=1.5.*int"),
        ("--config.optimizer.learning_rate=low", "config.optimizer.learning_rate=low.*float"),
        ("--config.data.flip=perhaps", "config.data.flip=perhaps.*[Bb]oolean"),
    ],
)
def test_wrong_config_overrides_are_refused(override, match, refused_config):
    refused_config(override, match=match)


def test_unknown_key_is_named_also_when_flags_use_spaces(refused, tmp_path):
    file, new = config_file(tmp_path), tmp_path / "place" / "new"
    arguments = ["--config", file, "--workdir", new, "--config.train.stepz", "3"]
    refused("main", *arguments, match="config.train has no 'stepz'; did you mean 'steps'")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ('config.train.steps = "many"', "config.py.*'steps'.*str.*int"),
        ("config.model.thinking.layers = 1", "config.py.*'layers'.*int.*tuple"),
        ("config.train.stepz = 3", "stepz.*Did you mean .steps"),
        ("config.unlock().train.stepz = 3", "config.train.stepz is unknown.*default"),
        ("config.unlock(); del config.train.steps", "config.train.steps has no value.*default"),
        ("config.train.steps = None", "config.train.steps has no value"),
        ("config.data.source = None", "config.data.source has no value"),
        ('config = {"seed": 1}', r"get_config\(\) must return.*tp_jax.config.default"),
    ],
)
def test_wrong_config_files_are_refused(change, match, refused_config, tmp_path):
    refused_config(file=config_file(tmp_path, change), match=match)


def test_a_misspelt_config_file_gets_a_suggestion(refused, tmp_path):
    path = config_file(tmp_path).with_name("confg.py")
    refused("main", f"--config={path}", "--workdir=w", match="did you mean .*config.py")


def test_variants_of_a_config_without_variants_are_refused(refused, tmp_path):
    arguments = [f"--config={config_file(tmp_path)}:large", f"--workdir={tmp_path / 'new'}"]
    refused("main", *arguments, match="config.py has no variants: leave out the colon")


def test_config_file_without_get_config_is_refused(refused_config, tmp_path):
    (tmp_path / "empty.py").write_text("x = 1\n")
    refused_config(file=tmp_path / "empty.py", match="no attribute 'get_config")


# Values in a config


@pytest.mark.parametrize(
    ("override", "match"),
    [
        ("model.thinking.layers=4,", r"layers=\(4,\): block 4 does not exist.*blocks 0 to 3"),
        ("model.thinking.layers=-1,", r"block -1 does not exist.*blocks 0 to 3"),
        ("model.thinking.layers=1.5,", r"layers=\(1.5,\): give block numbers"),
        ("model.thinking.layers='a','b'", r"layers=\('a', 'b'\): give block numbers"),
        ("model.thinking.layers=1,1", "names a block twice"),
        ("model.thinking.rank=0", "thinking.rank=0: must be 1 or more"),
        ("model.patch=3", "model.patch=3 does not divide config.model.image_size=8.*divisor"),
        ("model.heads=3", "model.width=16 must be a multiple of config.model.heads=3"),
        ("model.kind=unet", "config.model.kind='unet': choose one of dit, mmdit"),
        ("model.kind=mmdit", r"config.model\.\w+ has no value: start .* default\('mmdit', 'flow'"),
        ("diffusion.kind=gaussian", r"config.diffusion.* default\('dit', 'gaussian'"),
        ("mesh.data=3", r"mesh \(slices=1, data=3.* does not divide the 4 device.*product is 4"),
        (
            "mesh.fsdp=3",
            r"mesh \(slices=1, data=-1, fsdp=3.* does not divide the 4 device.*one of them to -1",
        ),
        ("mesh.slices=3", r"mesh \(slices=3.* does not divide the 4 device.*set one of them to -1"),
        ("train.batch_size=6", "train.batch_size=6 does not divide over the mesh.*multiple of 4"),
        ("train.accumulate=3", "accumulate=3 does not divide config.train.batch_size=8.*divisor"),
        ("train.accumulate=4", "batch_size / accumulate=2 does not divide.*multiple of 4"),
        (
            "train.batch_size=4000",
            "batch_size=4000 is larger than digits.*1797 images.*at most 1797",
        ),
        ("train.trainable=thinking", 'trainable="thinking" needs a base: set config.init.base'),
        ("train.trainable=gate", "trainable='gate': choose one of thinking, all"),
        ("train.steps=0", "config.train.steps=0: must be 1 or more"),
        ("train.sample_every=0", "config.train.sample_every=0: must be 1 or more"),
        ("train.samples=-1", "config.train.samples=-1: must be 0 or more"),
        ("seed=-1", "config.seed=-1: must be 0 or more"),
        ("data.workers=-1", "config.data.workers=-1: must be 0 or more"),
        ("optimizer.clip_norm=-1", "config.optimizer.clip_norm=-1.0: must be 0 or more"),
        ("optimizer.schedule=step", "schedule='step': choose one of constant, cosine"),
        (
            "data.source=photos",
            "source='photos' is unknown: choose one of captions, .*or tfds/NAME",
        ),
        ("data.source=tfds/photos", "tfds/photos.*not found.*download_and_prepare.*data.dir"),
        ("model.channels=3", "model.channels=3, but the images of digits have 1"),
        ("model.num_classes=7", "model.num_classes=7, but digits has 10 classes"),
        ("model.num_classes=0", "guidance_scale=1.5: guidance needs classes.*use 1"),
        ("model.image_size=16", "model.image_size=16, but the images of digits are 8"),
        ("sampling.sampler=ddpm", "'ddpm' does not sample a RectifiedFlow: .* euler, heun"),
        ("sampling.sampler=dpm", "'dpm' is unknown: choose one of ddpm, ddim, euler, heun"),
        ("sampling.steps=0", "steps=0: must be 1 or more"),
        ("sampling.guidance_interval=0.5,", r"guidance_interval=\(0.5,\): must be two numbers"),
    ],
)
def test_wrong_config_values_are_refused(override, match, refused_config):
    refused_config(f"--config.{override}", match=match)


@pytest.mark.parametrize(("steps", "match"), [(1, "must be 2 to"), (1001, "must be 2 to")])
def test_impossible_sampler_steps_of_gaussian_diffusion_are_refused(steps, match):
    config = config_lib.default("dit", "gaussian")
    config.sampling.steps = steps
    with pytest.raises(UserError, match=f"steps={steps}: {match}"):
        config_lib.build(config)


# Sampling


@pytest.fixture(scope="module")
def loaded(trained):
    return loading.load(trained)


@pytest.fixture
def refused_samples(refused, loaded, trained, tmp_path, monkeypatch):
    """Like `refused`, for sampling from the trained workdir, which is loaded only once."""

    def check(*arguments, match, loaded=loaded, out=None):
        monkeypatch.setattr(request, "load", lambda *args, **kwargs: loaded)
        out = out or tmp_path / "place" / "out.npz"
        flags = [f"--workdir={trained}", f"--out={out}", *arguments]
        refused("sample", *flags, match=match, watch=[trained])

    return check


@pytest.mark.parametrize(
    ("flag", "match"),
    [
        ("--labels=3,10", "label 10 is out of range: the model has 0 to 9"),
        ("--labels=-1", "label -1 is out of range: the model has 0 to 9"),
        ("--num=0", "num=0: must be 1 or more"),
        ("--num=-3", "num=-3: must be 1 or more"),
        ("--batch_size=6", "batch_size=6 does not divide over the mesh: make it a multiple of 4"),
        ("--batch_size=0", "flag --batch_size=0: must be 1 or more"),
        ("--sampler=ddim", "'ddim' does not sample a RectifiedFlow: choose one of euler, heun"),
        ("--sampler=dpm", "'dpm' is unknown: choose one of ddpm, ddim, euler, heun"),
        ("--sampler_steps=0", "sampler_steps=0: must be 1 or more"),
        ("--sampler_steps=-2", "sampler_steps=-2: must be 1 or more"),
        ("--latent_steps=0", "latent_steps=0: must be 1 or more"),
        ("--latent_steps=-1", "latent_steps=-1: must be 1 or more"),
    ],
)
def test_wrong_sampling_flags_are_refused(flag, match, refused_samples):
    refused_samples(flag, match=match)


def test_missing_checkpoint_is_refused(refused, trained, tmp_path):
    arguments = [f"--workdir={trained}", f"--out={tmp_path / 'place' / 'out.npz'}"]
    match = "no checkpoint 4 in .*: there are 3, 6"
    refused("sample", *arguments, "--checkpoint=4", match=match, watch=[trained])


def test_more_latent_steps_than_separate_experts_are_refused(refused_samples, loaded):
    config = loaded.model.config
    thinking = dataclasses.replace(config.thinking, share_across_steps=False)
    model = build_model(dataclasses.replace(config, thinking=thinking))
    loaded = dataclasses.replace(loaded, model=model)
    match = "latent_steps=3, .*share_across_steps=False.* 2 latent steps only: use 2 or fewer"
    refused_samples("--latent_steps=3", loaded=loaded, match=match)


def test_guidance_of_a_model_without_classes_is_refused(refused_samples, loaded):
    model = dataclasses.replace(loaded.built.model, num_classes=0)
    built = dataclasses.replace(loaded.built, model=model)
    loaded = dataclasses.replace(loaded, built=built)
    match = (
        "guidance_scale=4.0: guidance needs classes or text, and this model has no classes: use 1"
    )
    refused_samples("--guidance_scale=4", loaded=loaded, match=match)


def test_labels_for_a_model_without_classes_are_refused():
    with pytest.raises(UserError, match="the model has no classes: leave out the labels"):
        choose_labels((1,), 2, 0)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("picture.png", "picture.png is a file: give FILE.npz or a folder"),
        ("folder.npz", "folder.npz is a folder: give FILE.npz or a folder"),
        ("picture.png/out.npz", "--out=.*out.npz can't be created.*name another"),
        ("picture.png/out", "--out=.*out can't be created.*name another"),
    ],
)
def test_output_path_that_cannot_be_written_is_refused(name, match, refused_samples, tmp_path):
    (tmp_path / "place" / "picture.png").write_text("a picture")
    (tmp_path / "place" / "folder.npz").mkdir()
    refused_samples("--num=4", "--batch_size=4", out=tmp_path / "place" / name, match=match)


def test_damaged_checkpoint_is_named(trained, tmp_path):
    copy = epath.Path(tmp_path / "copy")
    shutil.copytree(trained, copy)
    shutil.rmtree(copy / "checkpoints" / "6" / "ema")
    with pytest.raises(UserError, match="6 in .*checkpoints is damaged .ema/_METADATA is missing"):
        loading.load(copy)
    # The error advises to load another checkpoint, which works.
    assert loading.load(copy, 3).train_step == 3


# Data


def test_data_smaller_than_a_batch_is_refused():
    source = Source([{}] * 7, image_size=8, channels=1, class_names=tuple("0123456789"))
    with pytest.raises(UserError, match="batch_size=8 is larger than digits.* 7 images"):
        data.make_iterator(source, tiny_config())


# New processes


def test_processes_end_with_a_one_line_error_and_exit_code_2(trained, tmp_path):
    config, foreign = config_file(tmp_path), make_foreign(tmp_path / "foreign")
    main = [sys.executable, "-m", "tp_jax.main", f"--config={config}"]
    sample = [sys.executable, "-m", "tp_jax.sample", f"--workdir={trained}"]
    out = tmp_path / "out"
    expected = {
        "error: unknown config key --config.train.stepz: config.train has no 'stepz'; did you "
        "mean 'steps'?": [*main, f"--workdir={out}", "--config.train.stepz=3"],
        f"error: --workdir={foreign} holds files but no config.json, so it wasn't created by "
        f"tp_jax: name a new or empty folder": [*main, f"--workdir={foreign}"],
        "error: label 10 is out of range: the model has 0 to 9": [
            *sample, f"--out={out}", "--labels=10",
        ],
    }  # fmt: skip
    before = snapshot(trained), snapshot(foreign)
    search = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": search}
    processes = {
        line: subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        for line, command in expected.items()
    }
    for line, process in processes.items():
        _, stderr = process.communicate(timeout=300)
        assert process.returncode == 2, stderr
        assert [found for found in stderr.splitlines() if found.startswith("error:")] == [line]
        assert "Traceback" not in stderr
    assert (snapshot(trained), snapshot(foreign)) == before
    assert not out.exists()

"""Exported models: every tensor to the bit, and the same samples as the workdir."""

import json
import os
import shutil

import numpy as np
import pytest
from conftest import run_entry, tiny_config
from etils import epath
from published_weights import KINDS, convert, torch_state
from safetensors.numpy import load_file

from tp_jax.files.safetensors import read_safetensors
from tp_jax.pretrained.folder import read_description
from tp_jax.train.loop import train


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A function from the name of a golden file to its converted folder."""
    root, done = tmp_path_factory.mktemp("converted"), {}

    def convert_once(name, state=None):
        if name not in done:
            arguments = ["--heads=4"] if name in ("dit", "sd3", "sd35") else []
            kind = KINDS.get(name, "sd-vae")
            convert(root / name, state or torch_state(name), kind, *arguments)
            done[name] = root / name / "out"
        return done[name]

    return convert_once


def export(workdir, out, *flags):
    code, _, stderr = run_entry("export", f"--workdir={workdir}", f"--out={out}", *flags)
    assert code == 0, stderr
    return stderr


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
        assert found[name].dtype == array.dtype


@pytest.mark.parametrize(
    ("name", "format"),
    [("dit", "dit"), ("sd3", "diffusers"), ("sd35", "diffusers"), ("vae4", "diffusers"),
     ("vae16", "diffusers"), pytest.param("dit_s2", "dit", marks=pytest.mark.slow)],
)  # fmt: skip
def test_export_gives_back_every_tensor(name, format, converted, tmp_path):
    stderr = export(converted(name), tmp_path / "out", f"--format={format}")
    file = "model" if format == "dit" else "diffusion_pytorch_model"
    assert_same(load_file(tmp_path / "out" / f"{file}.safetensors"), torch_state(name))
    assert f"{file}.safetensors: {len(torch_state(name))} weights" in stderr
    assert not (tmp_path / "out.tmp").exists()


@pytest.mark.parametrize(("name", "kind"), [("dit", "dit"), ("sd35", "sd3"), ("vae4", "sd-vae")])
def test_diffusers_folder_is_converted_to_the_same_weights(name, kind, converted, tmp_path):
    """The config.json is read back and must agree; the weights are in several files."""
    export(converted(name), tmp_path / "out", "--format=diffusers", "--shard_gigabytes=3e-5")
    shards = sorted((tmp_path / "out").glob("*-of-*.safetensors"))
    index = json.loads(
        (tmp_path / "out/diffusion_pytorch_model.safetensors.index.json").read_text()
    )
    state = [load_file(shard) for shard in shards]
    assert len(shards) > 1 and sum(map(len, state)) == len(index["weight_map"])
    sizes = [array.nbytes for shard in state for array in shard.values()]
    assert index["metadata"]["total_size"] == sum(sizes)
    flags = [f"--kind={kind}", f"--source={tmp_path / 'out'}", f"--out={tmp_path / 'again'}"]
    code, _, stderr = run_entry("convert", *flags)
    assert code == 0, stderr
    folders = (converted(name), tmp_path / "again")
    before, after = (read_description(epath.Path(folder), kind) for folder in folders)
    assert before.identity == after.identity and before.config == after.config


def test_published_dtype_is_exact(converted, tmp_path):
    state = {name: array.astype(np.float16) for name, array in torch_state("sd3").items()}
    convert(tmp_path / "half", state, "sd3", "--heads=4")
    export(tmp_path / "half/out", tmp_path / "out", "--format=diffusers", "--dtype=float16")
    assert_same(load_file(tmp_path / "out/diffusion_pytorch_model.safetensors"), state)


def samples(workdir, out, *flags):
    arguments = [f"--workdir={workdir}", f"--out={out}.npz", "--num=4", *flags]
    code, _, stderr = run_entry("sample", *arguments)
    assert code == 0, stderr
    with np.load(f"{out}.npz") as file:
        return file["arr_0"]


@pytest.mark.parametrize("flag", ["--ema", "--noema"])
def test_exported_model_gives_the_samples_of_its_workdir(flag, trained, tmp_path):
    stderr = export(trained, tmp_path / "out", flag)
    assert "checkpoint 6: base.safetensors, thinking.safetensors" in stderr
    found = samples(tmp_path / "out", tmp_path / "ours", flag)
    np.testing.assert_array_equal(found, samples(trained, tmp_path / "theirs", flag))
    other = "--noema" if flag == "--ema" else "--ema"
    arguments = [f"--workdir={tmp_path / 'out'}", f"--out={tmp_path}/x.npz", "--num=1", other]
    code, _, stderr = run_entry("sample", *arguments)
    assert code == 2 and f"leave {other} out" in stderr


@pytest.fixture(scope="module")
def fine_tuned(trained, tmp_path_factory):
    """A workdir whose base, `trained`, was frozen."""
    config = tiny_config(trainable="thinking")
    config.init.base = str(trained)
    workdir = epath.Path(tmp_path_factory.mktemp("fine_tuned")) / "run"
    train(config, workdir)
    return workdir


@pytest.mark.slow
def test_frozen_base_is_found_by_its_identity(fine_tuned, trained, tmp_path, refused):
    out = epath.Path(tmp_path) / "out"
    stderr = export(fine_tuned, out)
    assert "the frozen base isn't included" in stderr
    assert not (out / "base.safetensors").exists()
    wanted = samples(fine_tuned, tmp_path / "wanted")
    np.testing.assert_array_equal(samples(out, tmp_path / "found"), wanted)
    # Somewhere else, config.init.base doesn't exist.
    path = out / "config.json"
    path.write_text(path.read_text().replace(str(trained), str(tmp_path / "nowhere")))
    sample = ("sample", f"--workdir={out}", f"--out={tmp_path}/x.npz", "--num=1")
    refused(*sample, match="doesn't include its base, which is not at .*/out/base or .*nowhere")
    os.symlink(trained, out / "base")
    np.testing.assert_array_equal(samples(out, tmp_path / "linked"), wanted)
    (out / "base").unlink()
    shutil.copytree(fine_tuned, out / "base")  # a workdir with another seed's thinking, same base
    np.testing.assert_array_equal(samples(out, tmp_path / "copied"), wanted)
    shutil.rmtree(out / "base")
    other = tiny_config(steps=1)
    other.seed = 1
    train(other, out / "base")
    refused(*sample, match="isn't the one that .* was trained on .SHA-256")
    export(fine_tuned, tmp_path / "whole", "--with_base")
    np.testing.assert_array_equal(samples(tmp_path / "whole", tmp_path / "x"), wanted)


def test_base_of_a_run_in_the_layout_of_dit(trained, tmp_path):
    stderr = export(trained, tmp_path / "out", "--format=dit")
    assert "thinking can't be folded into its weights" in stderr
    found = read_safetensors(epath.Path(tmp_path) / "out/model.safetensors")
    assert found["blocks.3.attn.qkv.weight"].shape == (48, 16)


def test_damaged_files_are_refused(trained, tmp_path, refused):
    export(trained, tmp_path / "out")
    sample = ("sample", f"--workdir={tmp_path / 'out'}", f"--out={tmp_path}/x.npz", "--num=1")
    path = tmp_path / "out/thinking.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    refused(*sample, match=r"thinking\.safetensors is damaged, its SHA-256 is wrong")
    path.unlink()
    refused(*sample, match=r"thinking\.safetensors is missing")


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        (["--workdir={sd3}", "--format=dit"], "the layout of a DiT only"),
        (["--workdir={sd3}"], "converted weights, which tp_jax loads as they are"),
        (["--workdir={sd3}", "--format=diffusers", "--checkpoint=3"], "leave --checkpoint"),
        (["--workdir={trained}", "--checkpoint=5"], "no checkpoint 5"),
        (["--workdir=nowhere"], "there is no such folder"),
        (["--workdir={trained}", "--format=onnx"], "format"),
        (["--workdir={trained}", "--out={trained}"], "files already"),
    ],
)
def test_what_cannot_be_exported_is_refused(flags, match, converted, trained, tmp_path, refused):
    places = {"sd3": converted("sd3"), "trained": trained}
    flags = [f"--out={tmp_path / 'out'}", *(flag.format(**places) for flag in flags)]
    refused("export", *flags, match=match, watch=[trained])
    assert not list(tmp_path.glob("out*"))


def test_failed_export_leaves_nothing(trained, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", str(tmp_path / "out.tmp/thinking.safetensors"))

    monkeypatch.setattr("tp_jax.workdir.exported.write_safetensors", full)
    code, _, stderr = run_entry("export", f"--workdir={trained}", f"--out={tmp_path / 'out'}")
    assert code == 1 and "can't be written (No space left" in stderr
    assert not list(tmp_path.glob("out*"))

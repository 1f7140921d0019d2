"""Convert published weights: the folders it writes, the files it reads, and its errors."""

import json
import pathlib
import sys

import jax
import numpy as np
import pytest
from etils import epath
from published_weights import torch_state
from safetensors.numpy import save_file

from tp_jax.messages.errors import UserError
from tp_jax.models.autoencoder import AutoencoderConfig
from tp_jax.pretrained import folder as folder_lib
from tp_jax.pretrained import load_autoencoder, load_inception
from tp_jax.pretrained.files import load_state_dict
from tp_jax.pretrained.folder import save_folder

# Folders


def test_description_and_log(converted):
    folder = converted("vae16")
    description = json.loads((folder / "description.json").read_text())
    assert description.keys() == {"kind", "config", "sha256", "source"}
    assert description["kind"] == "sd-vae" and description["source"] == "weights.safetensors"
    assert len(description["sha256"]) == 64
    loaded = load_autoencoder(folder)
    assert loaded.identity == description["sha256"]
    assert loaded.config == AutoencoderConfig(16, 1.5305, 0.0609, (32, 32, 64), 2, 32, False)
    log = (folder.parent / "log").read_text()
    count = sum(leaf.size for leaf in jax.tree.leaves(loaded.params))
    assert f"{count:,} parameters" in log and "16 latent channels of 4×4" in log
    assert f"--config.autoencoder.path={folder}" in log and "(z - 0.0609)·1.5305" in log
    log = (converted("dit").parent / "log").read_text()
    assert "depth 3, width 48, heads 4" in log and "learned_sigma True" in log
    assert f"--config.init.base={converted('dit')}" in log


def test_identity_depends_only_on_names_and_values_of_the_weights(tmp_path):
    params = {"a": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}, "b": np.zeros(2)}
    other = {"b": params["b"], "a": {"kernel": np.asfortranarray(params["a"]["kernel"])}}
    trees = [params, other, params | {"b": np.ones(2)}, {"c": params["b"], "a": params["a"]}]
    first, same, *others = (
        save_folder(epath.Path(tmp_path / str(i)), tree, "dit", {}, "f").identity
        for i, tree in enumerate(trees)
    )
    assert first == same
    assert len({first, *others}) == 3


def test_folders_that_cannot_be_loaded_are_refused(converted, tmp_path):
    folder = epath.Path(tmp_path)
    with pytest.raises(UserError, match="nowhere: there is no such folder; .*--kind=sd-vae"):
        load_autoencoder(folder / "nowhere")
    with pytest.raises(UserError, match="holds weights of sd-vae, not of inception"):
        load_inception(converted("vae4"))
    with pytest.raises(UserError, match="isn't a complete folder"):
        load_autoencoder(folder)
    (folder / "description.json").write_text("{")
    with pytest.raises(UserError, match="description.json is damaged"):
        load_autoencoder(folder)
    source = converted("vae4") / "description.json"
    (folder / "description.json").write_text(source.read_text())
    with pytest.raises(UserError, match="is damaged"):
        load_autoencoder(folder)


def test_interrupted_conversion_leaves_no_folder_that_loads(tmp_path, monkeypatch):
    folder, params = epath.Path(tmp_path), {"a": np.zeros(2)}

    def killed(*_, **__):
        raise KeyboardInterrupt

    def save(name):
        save_folder(folder / name, params, "inception", {}, "file")

    for place, step in (("before", "save_weights"), ("between", "write_json")):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(folder_lib, step, killed)
            save(place)
    save("after")
    (folder / "after" / "description.json").rename(folder / "after" / "description.json.tmp")
    for place in ("before", "between", "after"):
        with pytest.raises(UserError, match="no such folder|isn't a complete folder"):
            load_inception(folder / place)
    save("whole")
    np.testing.assert_array_equal(load_inception(folder / "whole")[1]["a"], np.zeros(2))


def test_output_folder_must_be_new_or_empty(refused, tmp_path):
    place = tmp_path / "place"
    (place / "empty").mkdir()
    save_folder(epath.Path(place / "empty"), {"a": np.zeros(2)}, "dit", {}, "file")
    (place / "file").write_text("")
    arguments = ["--kind=dit", "--source=nowhere.pt"]
    for name in ("empty", "file"):
        out = place / name
        refused(
            "convert",
            *arguments,
            f"--out={out}",
            match=f"--out={out} (is a file|holds files already)",
        )
    save_file(torch_state("dit"), tmp_path / "w.safetensors")
    arguments = ["--kind=dit", "--heads=4", f"--source={tmp_path / 'w.safetensors'}"]
    refused("convert", *arguments, f"--out={place / 'file' / 'x'}", match="can't be written")


# Files


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (
            ["--source=x.pt", "--out={new}"],
            "--kind is missing: what the weights belong to: dit, sit, sd3",
        ),
        (["--kind=dit", "--out={new}"], "--source is missing: file with torch weights"),
        (["--kind=dit", "--source=x.pt"], "--out is missing: a new or empty folder"),
        (
            ["--kind=vae", "--source=x.pt", "--out={new}"],
            "--kind=vae: choose one of dit, sit, sd3",
        ),
        (["--kind=dit", "--source=x.pt", "--out={new}"], "--source=x.pt: there is no such file"),
        (["--kind=dit", "--source={text}", "--out={new}"], "give a .safetensors, .pt, .pth"),
        (["--kind=dit", "--source={bad}", "--out={new}"], "damaged or isn't a .safetensors file"),
        (
            ["--kind=sd-vae", "--heads=3", "--source={bad}", "--out={new}"],
            "--heads=3 doesn't apply to --kind=sd-vae",
        ),
    ],
)
def test_wrong_flags_are_refused(arguments, match, refused, tmp_path):
    names = {name: tmp_path / name for name in ("text", "bad.safetensors")}
    for path in names.values():
        path.write_text("no weights")
    names = dict(text=names["text"], bad=names["bad.safetensors"], new=tmp_path / "place" / "new")
    refused("convert", *(argument.format(**names) for argument in arguments), match=match)


def test_without_torch_the_error_names_the_extra(refused, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    source = tmp_path / "weights.pt"
    source.write_bytes(b"\x80\x02}.")  # an old file of torch, a pickle
    arguments = ["--kind=dit", f"--source={source}", f"--out={tmp_path / 'place' / 'new'}"]
    refused("convert", *arguments, match=r"needs torch: pip install -e '.\[convert\]'")


def test_half_precision_is_read_from_safetensors(tmp_path):
    import ml_dtypes

    value = np.array([[1.5, -0.25, 3.0]], np.float32)
    halves = {"b": value.astype(ml_dtypes.bfloat16), "h": value.astype(np.float16), "f": value}
    # safetensors.numpy can't write bfloat16, so write the file format by hand.
    header, data = {}, b""
    for (key, array), dtype in zip(halves.items(), ("BF16", "F16", "F32"), strict=True):
        offsets = [len(data), len(data) + array.nbytes]
        header[key] = {"dtype": dtype, "shape": array.shape, "data_offsets": offsets}
        data += array.tobytes()
    text = json.dumps(header).encode()
    path = epath.Path(tmp_path / "halves.safetensors")
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    found = load_state_dict(path)
    assert {key: array.dtype for key, array in found.items()} == {
        key: array.dtype for key, array in halves.items()
    }
    for array in found.values():
        np.testing.assert_array_equal(array.astype(np.float32), value)


@pytest.mark.parametrize("nested", ["", "ema", "state_dict", "model"])
def test_torch_files_are_read(nested, tmp_path):
    torch = pytest.importorskip("torch")
    import argparse

    weights = {
        "a": torch.nn.Parameter(torch.tensor([1.5])),
        "b": torch.tensor([2.5], dtype=torch.bfloat16),
    }
    state = weights
    if nested:
        others = {"model": {"a": torch.zeros(1)}, "args": argparse.Namespace(x=1), "step": 3}
        state = others | {nested: weights}
    path = epath.Path(tmp_path / "weights.pt")
    torch.save(state, path)
    assert {key: float(array[0]) for key, array in load_state_dict(path).items()} == {
        "a": 1.5,
        "b": 2.5,
    }


def test_torch_files_with_more_than_weights_are_refused(tmp_path):
    torch = pytest.importorskip("torch")
    path = epath.Path(tmp_path / "weights.ckpt")
    torch.save({"state_dict": {"a": torch.zeros(1)}, "callback": pathlib.PurePosixPath("x")}, path)
    with pytest.raises(UserError, match="is damaged, or contains pickled objects"):
        load_state_dict(path)
    torch.save({"epoch": 3}, path)
    with pytest.raises(UserError, match="contains no state dict"):
        load_state_dict(path)

"""Files that downloads leave instead of the wanted ones: refused in one line, by every reader."""

import gzip
import json
import re
import zipfile

import numpy as np
import pytest
from etils import epath
from safetensors.numpy import save_file

from tp_jax.files.downloads import check_download
from tp_jax.files.jsonl import read_lines, read_text
from tp_jax.files.safetensors import read_safetensors
from tp_jax.messages.errors import UserError
from tp_jax.pictures.reading import open_images
from tp_jax.pretrained.convert import Conversion, convert
from tp_jax.text.published import (
    check_config,
    check_loaded,
    check_not_quantised,
    check_tied,
    check_tokenizer_files,
    weight_files,
)

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 492265168\n"
PAGE = b"\n<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>"
# What a download may leave, and the start of the error's end.
STAND_INS = {
    "empty": (b"", r"\(it is empty\): download it again"),
    "pointer": (POINTER, "Git LFS pointer.*: run `git lfs pull` in /"),
    "page": (PAGE, "is a web page, not the file itself: download it again"),
    "page in capitals": (b"<HTML>", "is a web page"),
    "xml": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "is a web page"),
    "gzip": (gzip.compress(b"x" * 99), "is compressed with gzip: unpack it"),
    "xz": (b"\xfd7zXZ\0", "is compressed with xz"),
    "zstd": (b"\x28\xb5\x2f\xfd\0", "is compressed with zstd"),
}
NAMES = ("model.safetensors", "model.safetensors.index.json", "config.json", "merges.txt",
         "spiece.model", "weights.pt", "pytorch_model.bin")  # fmt: skip


def message(call, *arguments, **options):
    """Return the one line of the UserError that a call raises."""
    with pytest.raises(UserError) as error:
        call(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", NAMES)
def test_stand_ins_are_refused_under_every_name(name, tmp_path):
    path = epath.Path(tmp_path / name)
    assert message(check_download, path) == f"{path}: there is no such file; download it"
    for content, match in STAND_INS.values():
        path.write_bytes(content)
        found = message(check_download, path)
        assert found.startswith(str(path)) and re.search(match, found), found


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("a.safetensors", b"\x40\0\0\0\0\0\0\0{", "its header is incomplete"),
        ("a.safetensors", b"not weights at all", "damaged or isn't a .safetensors file"),
        ("config.json", b'{"a": 1', "is damaged (Expecting"),
        ("config.json", b"[1]", "is damaged (it holds a JSON list, not an object)"),
        (
            "config.json",
            b'{"error": "Access to this model is restricted"}',
            "holds only an error message",
        ),
        ("x.index.json", b"[1]", "isn't an index of .safetensors files"),
        ("config.json", b"Invalid username or password.", "is damaged (Expecting"),
        ("config.json", b"[" * 100_000, "is damaged (maximum recursion"),
        ("merges.txt", b" \n\n", "is empty"),
        ("merges.txt", b"\xff\xfe\x00", "isn't UTF-8 text"),
        ("weights.pt", b"PK\x03\x04 and nothing more", "is cut"),
        ("a.safetensors", b"PK\x03\x04 and nothing more", "is compressed with zip"),
    ],
)
def test_cut_files_are_refused_by_their_kind(name, content, match, tmp_path):
    path = epath.Path(tmp_path / name)
    path.write_bytes(content)
    assert match in message(check_download, path)


def test_whole_files_pass(tmp_path):
    folder = epath.Path(tmp_path)
    save_file({"a": np.ones(3, np.float32)}, folder / "a.safetensors")
    (folder / "config.json").write_text("{}")
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "old.pt").write_bytes(b"\x80\x02}q\x00.")
    with zipfile.ZipFile(folder / "new.pt", "w") as file:
        file.writestr("archive/data.pkl", b"x" * 99)
    for path in folder.iterdir():
        check_download(path)
    data = (folder / "a.safetensors").read_bytes()
    (folder / "a.safetensors").write_bytes(data[:-1])
    assert "the data of a is incomplete" in message(read_safetensors, folder / "a.safetensors")


@pytest.mark.parametrize("stand_in", ["empty", "pointer", "page", "gzip"])
@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("w.safetensors", "w.safetensors"),
        ("", "w.safetensors"),
        ("", "config.json"),
        ("", "x.safetensors.index.json"),
        ("", "x-00001-of-00001.safetensors"),
    ],
)
def test_convert_names_the_stand_in(source, name, stand_in, tmp_path):
    folder = epath.Path(tmp_path / "source")
    folder.mkdir()
    if "w.s" not in name:
        weights = "w" if "x" not in name else "x-00001-of-00001"
        save_file({"a": np.ones(1, np.float32)}, folder / f"{weights}.safetensors")
    if name.startswith("x-"):
        index = {"weight_map": {"a": "x-00001-of-00001.safetensors"}}
        (folder / "x.safetensors.index.json").write_text(json.dumps(index))
    (folder / name).write_bytes(STAND_INS[stand_in][0])
    out = epath.Path(tmp_path / "out")
    found = message(convert, Conversion("sd-vae", folder / source if source else folder, out))
    assert str(folder / name) in found
    assert stand_in != "pointer" or f"run `git lfs pull` in {folder}" in found
    assert not out.exists()


# Text encoders and detectors, without torch

SYMBOLS = ("a", "b", "b</w>")


@pytest.fixture
def tokenizer(tmp_path):
    folder = epath.Path(tmp_path / "tokenizer")
    folder.mkdir()
    tokens = (*SYMBOLS, "ab", "ab</w>", "<|endoftext|>")
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\na b\na b</w>\n")
    (folder / "special_tokens_map.json").write_text("{}")
    return folder


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "special_tokens_map.json"])
@pytest.mark.parametrize("stand_in", ["empty", "pointer", "page"])
def test_stand_ins_in_a_tokenizer_are_refused(name, stand_in, tokenizer):
    check_tokenizer_files(tokenizer)
    (tokenizer / name).write_bytes(STAND_INS[stand_in][0])
    assert str(tokenizer / name) in message(check_tokenizer_files, tokenizer)


@pytest.mark.parametrize(
    ("merges", "match"),
    [
        ("#version: 0.2\n", "lacks the merges of 2 tokens in vocab.json, such as 'ab'"),
        ("#version: 0.2\na b\n", "lacks the merges of 1 tokens in vocab.json, such as 'ab</w>'"),
        ("#version: 0.2\na b\na", "the line 'a' isn't a pair"),
        (None, "has vocab.json but no merges.txt"),
    ],
)
def test_cut_merges_are_refused(merges, match, tokenizer):
    if merges is None:
        (tokenizer / "merges.txt").unlink()
    else:
        (tokenizer / "merges.txt").write_text(merges)
    assert match in message(check_tokenizer_files, tokenizer)


def test_a_folder_without_a_tokenizer_is_refused(tokenizer):
    (tokenizer / "vocab.json").unlink()
    assert "has no tokenizer: download its files" in message(check_tokenizer_files, tokenizer)


@pytest.mark.parametrize(
    ("missing", "unexpected", "shapes", "match"),
    [
        (["b", "a"], [], {}, "a is missing (and 1 more)"),
        ([], ["x.weight"], {}, "x.weight isn't used by this model"),
        ([], [], {"w": ([2, 3], [2, 4])}, "w has shape [2, 3], expected [2, 4]"),
        (["a"], ["x", "y.position_ids"], {}, "a is missing (and 1 more)"),
        ([], ["my_position_ids"], {}, "my_position_ids isn't used"),
    ],
)
def test_weights_that_do_not_fill_a_model_are_refused(missing, unexpected, shapes, match):
    found = message(check_loaded, epath.Path("F"), "CLIP-L", missing, unexpected, shapes)
    assert found.startswith("F: the weights aren't those of CLIP-L with this config.json: ")
    assert match in found


def test_entries_that_models_compute_themselves_may_be_in_the_file():
    names = ("text_model.embeddings.position_ids", "m.attention.self.relative_position_index",
             "criterion.empty_weight")  # fmt: skip
    check_loaded(epath.Path("F"), "CLIP-L", [], names, {})


def test_one_file_comes_before_shards_and_full_precision_first(tmp_path):
    folder = epath.Path(tmp_path)
    assert "has no model.safetensors" in message(weight_files, folder)
    (folder / "pytorch_model.bin").write_bytes(b"x")
    assert weight_files(folder, pickled=True) == (None, [folder / "pytorch_model.bin"])
    index = {"weight_map": {"a": "s2.safetensors", "b": "s1.safetensors"}}
    (folder / "model.safetensors.index.fp16.json").write_text(json.dumps(index))
    shards = [folder / "s1.safetensors", folder / "s2.safetensors"]
    assert weight_files(folder) == ("fp16", shards)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert weight_files(folder) == (None, shards)
    (folder / "model.safetensors").write_bytes(b"x")
    assert weight_files(folder) == (None, [folder / "model.safetensors"])
    (folder / "model.safetensors").unlink()
    for content in ("{}", '{"weight_map": {}}', '{"weight_map": {"a": "../x.safetensors"}}'):
        (folder / "model.safetensors.index.json").write_text(content)
        assert "isn't an index of .safetensors files" in message(weight_files, folder)


def test_the_two_names_of_the_embedding_of_t5(tmp_path):
    names, ones = ("shared.weight", "encoder.embed_tokens.weight"), np.ones((2, 2), np.float32)
    path = epath.Path(tmp_path / "t5.safetensors")
    for chosen in (names[:1], names[1:], names):
        save_file({name: ones.copy() for name in chosen}, path)
        check_tied([path])
    save_file({names[0]: ones, names[1]: ones + 1}, path)
    assert "shared.weight and encoder.embed_tokens.weight differ" in message(check_tied, [path])
    save_file({"other": ones}, path)
    assert "shared.weight is missing" in message(check_tied, [path])


def test_quantised_weights_of_text_encoders_are_refused(tmp_path):
    path = epath.Path(tmp_path / "model.safetensors")
    save_file({"position_ids": np.arange(3), "a": np.ones(2, np.float16)}, path)
    check_not_quantised([path])
    save_file({"fc.weight": np.ones(2, np.int8)}, path)
    found = message(check_not_quantised, [path])
    assert found == (
        f"{path}: fc.weight holds int8, not floating-point numbers: give weights that aren't "
        f"quantised"
    )


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"model_type": "bert"}, "describes a model of type 'bert', expected 'clip_text_model'"),
        ({"quantization_config": {"load_in_8bit": True}}, "has a quantization_config: give"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps is nan: download it again"),
        ({"initializer_factor": float("-inf")}, "initializer_factor is -inf"),
    ],
)
def test_configs_that_do_not_fit_are_refused(change, match, tmp_path):
    path = epath.Path(tmp_path / "config.json")
    for good in ({}, {"model_type": "clip"}, {"quantization_config": None, "torch_dtype": "x"}):
        path.write_text(json.dumps(good))
        check_config("clip_text_model", path)
    path.write_text(json.dumps(change))
    assert re.search(match, message(check_config, "clip_text_model", path))


def test_pointers_are_told_by_readers_of_texts_and_of_samples(tmp_path):
    (tmp_path / "samples").mkdir()
    for name, reader, opened in (
        ("prompts.txt", read_text, "prompts.txt"),
        ("captions.jsonl", read_lines, "captions.jsonl"),
        ("reference.npz", open_images, "reference.npz"),
        ("samples/0.png", open_images, "samples"),
    ):
        (tmp_path / name).write_bytes(POINTER)
        path = epath.Path(tmp_path / name)
        assert message(reader, epath.Path(tmp_path / opened)) == (
            f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull` in {path.parent}"
        )

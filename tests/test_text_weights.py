"""Text encoders and detectors whose files don't fit, with torch: refused by name, in one line."""

import json
import re
import shutil

import numpy as np
import pytest
from etils import epath
from golden.seeded import seeded_weights

from tp_jax.messages.errors import UserError
from tp_jax.text.sd3 import load_sd3_encoder

pytestmark = pytest.mark.text

CLIP, BIG, T5 = "text_encoder", "text_encoder_2", "text_encoder_3"
QUERY = "encoder.block.1.layer.0.SelfAttention.q.weight"
PROJECTION = "text_projection.weight"
EMBEDDING = "encoder.embed_tokens.weight"
POSITIONS = "text_model.embeddings.position_ids"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 492265168\n"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from golden.tiny_text import write_repository

    folder = tmp_path_factory.mktemp("repository")
    write_repository(folder, seeded_weights)
    return folder


@pytest.fixture
def repository(original, tmp_path):
    shutil.copytree(original, tmp_path / "copy")
    return epath.Path(tmp_path / "copy")


def read(folder):
    from safetensors.numpy import load_file

    return load_file(folder / "model.safetensors")


def write(folder, state):
    from safetensors.numpy import save_file

    save_file(
        {key: np.ascontiguousarray(a) for key, a in state.items()}, folder / "model.safetensors"
    )


def without(key):
    return lambda state: {name: array for name, array in state.items() if name != key}


def prefixed(prefix):
    return lambda state: {prefix + name: array for name, array in state.items()}


def bad(key, value):
    def change(state):
        array = state[key].copy()
        array[-1, -1] = value
        return state | {key: array}

    return change


@pytest.mark.parametrize(
    ("part", "change", "match"),
    [
        (T5, without("shared.weight"), "shared.weight is missing"),
        (T5, without(QUERY), f"{re.escape(QUERY)} is missing; "),
        (T5, lambda s: s | {EMBEDDING: s["shared.weight"] + 1}, "embed_tokens.weight differ"),
        (T5, lambda s: s | {"lm_head.weight": s["shared.weight"]}, "lm_head.weight isn't used"),
        (T5, bad(QUERY, np.nan), rf"weight {re.escape(QUERY)} has the value nan at \[31, 47\]"),
        (CLIP, without(PROJECTION), f"CLIP-L .*{PROJECTION} is missing; "),
        (CLIP, prefixed("text_encoder."), "position_embedding.weight is missing .and 105 more"),
        (CLIP, prefixed("model."), "position_embedding.weight is missing .and 105 more"),
        (CLIP, prefixed("module."), "position_embedding.weight is missing .and 105 more"),
        (BIG, lambda s: s | {"logit_scale": np.ones(1)}, "CLIP-bigG .*logit_scale isn't used"),
        (BIG, bad(PROJECTION, np.inf), f"{PROJECTION} has the value inf at .23, 23.: download"),
        (
            BIG,
            lambda s: s | {PROJECTION: s[PROJECTION][:, :8]},
            rf"{PROJECTION} has shape \[24, 8\], expected \[24, 24\]",
        ),
    ],
)
def test_weights_that_do_not_fill_an_encoder_are_refused(part, change, match, repository):
    write(repository / part, change(read(repository / part)))
    with pytest.raises(UserError, match=match) as error:
        load_sd3_encoder(repository)
    assert "\n" not in str(error.value) and str(repository / part) in str(error.value)


@pytest.mark.parametrize(
    ("part", "fields", "match"),
    [
        (CLIP, {"num_hidden_layers": 2}, "layers.2.layer_norm1.bias isn't used"),
        (CLIP, {"num_hidden_layers": 4}, "layers.3.layer_norm1.bias is missing"),
        (CLIP, {"hidden_size": 32}, r"has shape \[77, 16\], expected \[77, 32\]"),
        (CLIP, {"vocab_size": 99}, r"has shape \[74, 16\], expected \[99, 16\]"),
        (CLIP, {"model_type": "t5"}, "a model of type 't5', expected 'clip_text_model'"),
        (CLIP, {"num_hidden_layers": "2"}, "num_hidden_layers.* expected int.*; download it again"),
        (T5, {"num_layers": 1}, "block.1.layer.0.SelfAttention.k.weight isn't used"),
        (T5, {"num_heads": 2}, "has shape"),
        (T5, {"feed_forward_proj": "relu"}, "DenseReluDense.wi.weight is missing"),
    ],
)
def test_a_config_json_of_another_model_is_refused(part, fields, match, repository):
    path = repository / part / "config.json"
    theirs = json.loads(path.read_text())
    for name in ("dense_act_fn", "is_gated_act"):
        theirs.pop(name, None)
    path.write_text(json.dumps(theirs | fields))
    with pytest.raises(UserError, match=match) as error:
        load_sd3_encoder(repository)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("part", "change"),
    [
        (T5, lambda s: s | {EMBEDDING: s["shared.weight"]}),
        (T5, lambda s: {(EMBEDDING if k == "shared.weight" else k): a for k, a in s.items()}),
        (CLIP, lambda s: s | {POSITIONS: np.arange(77)[None]}),
    ],
)
def test_published_layouts_give_the_same_numbers(part, change, original, repository, capfd):
    wanted = load_sd3_encoder(original).encode(["a red cube"])
    write(repository / part, change(read(repository / part)))
    found = load_sd3_encoder(repository).encode(["a red cube"])
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("file", "content", "match"),
    [
        (f"{CLIP}/model.safetensors", POINTER, "is a Git LFS pointer"),
        (f"{T5}/config.json", POINTER, "is a Git LFS pointer"),
        (f"{BIG}/model.safetensors", "", "is empty"),
        ("tokenizer/merges.txt", "", "is empty"),
        ("tokenizer/merges.txt", "#version: 0.2\n", "lacks the merges of"),
        ("tokenizer/vocab.json", "{", "vocab.json is damaged"),
        ("tokenizer_2/special_tokens_map.json", "", "is empty"),
        ("tokenizer_3/tokenizer.json", POINTER, "is a Git LFS pointer"),
        ("tokenizer_3/tokenizer.json", "{}", "download it again"),
        ("tokenizer_3/spiece.model", POINTER, "is a Git LFS pointer"),
        ("tokenizer_3/spiece.model", "cut", "is cut or isn.t a SentencePiece model"),
    ],
)
def test_cut_and_stand_in_files_are_refused(file, content, match, repository):
    (repository / file).write_text(content)
    with pytest.raises(UserError, match=match) as error:
        load_sd3_encoder(repository)
    assert "\n" not in str(error.value) and str(repository / file.split("/")[0]) in str(error.value)


def test_a_tokenizer_of_another_model_is_refused(repository):
    shutil.copytree(repository / "tokenizer", repository / "tokenizer_3", dirs_exist_ok=True)
    (repository / "tokenizer_3" / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="tokenizer has 74 tokens, but T5 has 39: it is cut, or"):
        load_sd3_encoder(repository)


def test_a_token_without_a_row_in_the_embedding_is_refused(repository):
    path = repository / "tokenizer" / "vocab.json"
    vocabulary = json.loads(path.read_text())
    path.write_text(json.dumps(vocabulary | {"cat</w>": 900}))
    with pytest.raises(UserError, match="tokenizer has 901 tokens, but CLIP-L has 74"):
        load_sd3_encoder(repository)


def test_the_identity_is_of_the_files_that_are_read(repository):
    first = load_sd3_encoder(repository).space.identity
    # transformers prefers one file to shards, so that these don't count.
    index = {"weight_map": {"a": "other.safetensors"}}
    (repository / T5 / "model.safetensors.index.json").write_text(json.dumps(index))
    (repository / T5 / "other.safetensors").write_text("")
    assert load_sd3_encoder(repository).space.identity == first
    state = read(repository / T5)
    write(repository / T5, state | {QUERY: state[QUERY] * 2})
    assert load_sd3_encoder(repository).space.identity != first

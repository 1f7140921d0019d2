"""SD3's text encoders, small and with random weights, against diffusers' pipeline.

tests/golden/README.md names the code that computed the expected outputs.
"""

import json
import sys

import numpy as np
import pytest
from etils import epath
from golden.seeded import seeded_weights
from published_weights import golden

from tp_jax.messages.errors import UserError
from tp_jax.text.sd3 import load_sd3_encoder

T5_TOKENS = 12
LONG = " ".join(["cube"] * 76)


@pytest.fixture(scope="session")
def repository(tmp_path_factory):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from golden.tiny_text import write_repository

    folder = tmp_path_factory.mktemp("repository")
    write_repository(folder, seeded_weights)
    return folder


def assert_close(ours, theirs, tolerance=1e-5):
    assert ours.shape == theirs.shape and ours.dtype == np.float32
    error = np.abs(ours - theirs).max() / np.abs(theirs).max()
    print(f"relative error {error:.1e}")
    assert error < tolerance


@pytest.mark.text
@pytest.mark.parametrize("t5", [True, False])
def test_encodings_equal_those_of_diffusers(t5, repository):
    arrays, suffix = golden("sd3_text"), "" if t5 else "_without_t5"
    encoder = load_sd3_encoder(repository, t5=t5, t5_tokens=T5_TOKENS)
    found = encoder.encode(json.loads(str(arrays["prompts"])))
    assert found.keys() == {"text", "pooled"}
    for name, array in found.items():
        assert_close(array, arrays[name + suffix])
    # In the output of each encoder the prompts differ by more than rounding.
    text = arrays["text"]
    for part in (text[:, :77, :16], text[:, :77, 16:40], text[:, 77:]):
        assert np.abs(part[0] - part[2]).max() > 0.1 * np.abs(part).max()
    space = encoder.space
    assert (space.tokens, space.width, space.pooled_width) == (77 + T5_TOKENS, 48, 40)
    assert len(space.identity) == 64


@pytest.mark.text
def test_encoding_a_prompt_does_not_depend_on_its_batch(repository):
    encoder = load_sd3_encoder(repository, batch_size=3)
    prompts = ["a red cube", "", "the cat on a ball", "blue", "a", "the blue cat", "ball"]
    together = encoder.encode(prompts)
    for row in (0, 1, 4, 6):
        alone = encoder.encode(prompts[row : row + 1])
        for name, array in alone.items():
            np.testing.assert_allclose(array[0], together[name][row], atol=1e-6, rtol=0)
    assert encoder.encode([])["text"].shape == (0, 154, 48)
    assert encoder.encode([])["pooled"].shape == (0, 40)


@pytest.mark.text
def test_long_prompts_are_refused_or_truncated(repository, capsys):
    encoder = load_sd3_encoder(repository, t5_tokens=T5_TOKENS)
    encoder.check(" ".join(["cube"] * (T5_TOKENS - 1)))
    with pytest.raises(UserError, match="'cube cube.*…' has 78 tokens, but CLIP-L accepts 77:"):
        encoder.check(LONG)
    # T5 needs one of its tokens for the end of the prompt.
    with pytest.raises(
        UserError, match=f"has 13 tokens, but T5 accepts {T5_TOKENS}: .*text.truncate=true"
    ):
        encoder.encode(["a cat", " ".join(["cube"] * T5_TOKENS)])
    cutting = load_sd3_encoder(repository, t5_tokens=80, truncate=True)
    cutting.check(LONG)
    capsys.readouterr()
    found = cutting.encode(["a cat", LONG, LONG + " red"])
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "warning: 2 of 3 prompts are cut: the first has 78 tokens, but CLIP-L accepts 77 "
        "(later prompts are cut without a warning)"
    ]
    # The added word is cut off for CLIP, but still fits T5.
    np.testing.assert_array_equal(found["text"][1, :77], found["text"][2, :77])
    assert np.abs(found["text"][1, 77:] - found["text"][2, 77:]).max() > 0.01
    cutting.encode([LONG])
    assert not capsys.readouterr().err


@pytest.mark.text
def test_identity_depends_on_weights_tokenizers_and_settings_only(repository, tmp_path):
    import shutil

    def identity(folder=repository, **settings):
        return load_sd3_encoder(folder, **settings).space.identity

    copy = tmp_path / "copy"
    shutil.copytree(repository, copy)
    # The location of the folder and the dtype do not change the identity.
    assert identity(copy) == identity(dtype="bfloat16") == identity()
    different = [
        identity(),
        identity(t5=False),
        identity(t5_tokens=80),
        identity(clip_tokens=70),
    ]
    for file in ("text_encoder_2/model.safetensors", "tokenizer_3/tokenizer_config.json"):
        path = copy / file
        data = path.read_bytes()
        path.write_bytes(data[:-2] + (b"\0\0" if file.endswith("tensors") else b" }"))
        different.append(identity(copy))
        path.write_bytes(data)
    assert len(set(different)) == len(different)


@pytest.mark.text
def test_bfloat16_encodings_are_close_to_float32(repository):
    prompts = json.loads(str(golden("sd3_text")["prompts"]))
    wanted = load_sd3_encoder(repository).encode(prompts)
    found = load_sd3_encoder(repository, dtype="bfloat16").encode(prompts)
    for name, array in found.items():
        assert_close(array, wanted[name], 0.1)
        assert np.abs(array - wanted[name]).max() > 1e-4


@pytest.mark.text
def test_incomplete_or_damaged_folders_are_refused(repository, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(repository, copy)
    with pytest.raises(UserError, match="CLIP-L accepts 2 to 77 tokens per prompt, not 78"):
        load_sd3_encoder(copy, clip_tokens=78)
    (copy / "text_encoder_2" / "config.json").write_text("{")
    with pytest.raises(UserError, match="CLIP-bigG can't be loaded from .*download it again"):
        load_sd3_encoder(copy)
    (copy / "text_encoder" / "model.safetensors").rename(copy / "text_encoder" / "pytorch.bin")
    with pytest.raises(UserError, match="text_encoder has no model.safetensors"):
        load_sd3_encoder(copy)
    shutil.rmtree(copy / "text_encoder_3")
    with pytest.raises(UserError, match="lacks text_encoder_3: set config.text.path"):
        load_sd3_encoder(copy)


@pytest.mark.text
def test_fp16_files_and_shards_are_loaded(repository, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(repository, copy)
    t5 = copy / "text_encoder_3"
    shard = "model.fp16-00001-of-00001.safetensors"
    from safetensors import safe_open

    with safe_open(t5 / "model.safetensors", "np") as file:
        places = dict.fromkeys(file.keys(), shard)
    (t5 / "model.safetensors").rename(t5 / shard)
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (t5 / "model.safetensors.index.fp16.json").write_text(json.dumps(index))
    clip = copy / "text_encoder" / "model.safetensors"
    clip.rename(clip.with_name("model.fp16.safetensors"))
    prompts = ["a red cube"]
    found, wanted = (load_sd3_encoder(folder).encode(prompts) for folder in (copy, repository))
    for name, array in found.items():
        np.testing.assert_array_equal(array, wanted[name])


# Tests that do not need torch.


def empty_repository(folder):
    """Make the folders of an SD3 repository, without any files in them."""
    for name in ("text_encoder", "text_encoder_2", "text_encoder_3"):
        (folder / name).mkdir()
        (folder / name.replace("text_encoder", "tokenizer")).mkdir()
    return epath.Path(folder)


@pytest.mark.parametrize("missing", ["torch", "transformers"])
def test_a_missing_text_extra_is_reported(missing, tmp_path, monkeypatch):
    # transformers imports torch, so the message may name either package.
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UserError, match=r"encoder needs (torch|transformers): pip .*'\.\[text\]'"):
        load_sd3_encoder(empty_repository(tmp_path))


def test_invalid_settings_and_folders_are_refused_before_loading(tmp_path):
    with pytest.raises(UserError, match="dtype='float8' of the text encoder: choose one of"):
        load_sd3_encoder(tmp_path, dtype="float8")
    with pytest.raises(UserError, match="lacks text_encoder: set config.text.path"):
        load_sd3_encoder(tmp_path)
    empty_repository(tmp_path)
    (tmp_path / "tokenizer_3").rmdir()
    with pytest.raises(UserError, match="lacks tokenizer_3"):
        load_sd3_encoder(tmp_path)

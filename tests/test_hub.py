"""Models on the Hugging Face Hub, against a stand-in of its HTTP interface on this machine."""

import re

import numpy as np
import pytest
from conftest import run_entry
from etils import epath
from hub_server import Hub, serve
from published_weights import torch_state
from safetensors.numpy import save

from tp_jax.files import hub as hub_paths
from tp_jax.files.hub import local
from tp_jax.messages.errors import UserError
from tp_jax.pretrained.folder import read_description

TOKEN = "hf_a_secret_of_the_tests"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty stand-in, which huggingface_hub talks to, with an empty cache."""
    from huggingface_hub import constants

    found = Hub()
    with serve(found) as address:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE",
            address + "/{repo_id}/resolve/{revision}/{filename}",
        )  # fmt: skip
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        hub_paths._download.cache_clear()
        yield found
    hub_paths._download.cache_clear()


def weights(state):
    return save({name: np.ascontiguousarray(array) for name, array in state.items()})


def test_folders_files_and_revisions_are_found(hub, tmp_path):
    first = hub.add("lab/model", {"a.txt": b"1", "vae/b.txt": b"2"})
    second = hub.add("lab/model", {"a.txt": b"3", "vae/b.txt": b"4", "big.bin": b"x"})
    assert (local("hf://lab/model") / "a.txt").read_bytes() == b"3"
    assert local("hf://lab/model@" + first + "/vae/b.txt").read_bytes() == b"2"
    folder = local(f"hf://lab/model@{first}/vae")
    assert [path.name for path in folder.iterdir()] == ["b.txt"]
    assert hub_paths.origin(folder) == f"hf://lab/model@{first}/vae"
    assert local("hf://lab/model").name == second
    assert local(tmp_path) == epath.Path(tmp_path)


def test_only_the_wanted_folders_are_downloaded(hub):
    hub.add("lab/model", {"transformer/a.bin": b"1", "text_encoder/b.bin": b"2"})
    folder = local("hf://lab/model", "transformer")
    assert [path.name for path in folder.iterdir()] == ["transformer"]
    assert not any("text_encoder" in line for line in hub.requests)
    # Without such a folder, all of it.
    assert (local("hf://lab/model", "unet") / "text_encoder/b.bin").exists()


def test_what_was_downloaded_is_found_offline(hub, monkeypatch):
    from huggingface_hub import constants

    hub.add("lab/model", {"a.txt": b"1"})
    path = local("hf://lab/model")
    hub_paths._download.cache_clear()
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert local("hf://lab/model") == path and not hub.requests
    with pytest.raises(UserError, match="hf://lab/other isn't in the cache, and the Hub can't be"):
        local("hf://lab/other")


@pytest.mark.parametrize(
    ("path", "match"),
    [
        ("hf://lab/none", "there is no such repository, or it is private"),
        ("hf://lab/model@v9", "the repository has no such revision"),
        ("hf://lab/model/none.bin", "the repository has no none.bin"),
        ("hf://lab/closed", "is gated: accept its terms on its page"),
        ("hf://lab", "write hf://OWNER/NAME"),
        ("hf://la b/mo..del", "Repo id must"),
    ],
)
def test_what_is_not_there_is_refused(path, match, hub):
    hub.add("lab/model", {"a.txt": b"1"})
    hub.add("lab/closed", {"a.txt": b"1"})
    hub.gated.add("lab/closed")
    with pytest.raises(UserError, match=match):
        local(path)


def test_no_network_is_refused_in_one_line(hub, monkeypatch, tmp_path, refused):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    flags = ("--kind=dit", "--source=hf://lab/model", f"--out={tmp_path / 'out'}")
    refused("convert", *flags, match="hf://lab/model isn't in the cache, and the Hub can't be")


def test_weights_are_converted_with_their_origin(hub, tmp_path):
    files = {"transformer/weights.safetensors": weights(torch_state("dit")), "other.bin": b"no"}
    commit = hub.add("lab/dit", files)
    flags = ["--kind=dit", "--source=hf://lab/dit", "--heads=4", f"--out={tmp_path / 'out'}"]
    code, _, stderr = run_entry("convert", *flags)
    assert code == 0, stderr
    found = read_description(epath.Path(tmp_path / "out"), "dit")
    assert found.source == f"hf://lab/dit@{commit}"
    assert f"hf://lab/dit: commit {commit[:12]}" in stderr
    assert TOKEN not in stderr and "Bearer " + TOKEN in hub.tokens


def push(workdir, out, *flags):
    return run_entry("export", f"--workdir={workdir}", f"--out={out}", "--push=lab/digits", *flags)


def test_a_pushed_model_gives_the_same_samples(hub, trained, tmp_path):
    scores = tmp_path / "scores.json"
    scores.write_text('{"suite": "digits", "accuracy": 0.94, "drawing": {"seed": 7, "num": 64}}')
    code, _, stderr = push(trained, tmp_path / "out", "--license=mit", f"--scores={scores}")
    assert code == 0, stderr
    assert "uploaded to hf://lab/digits, commit" in stderr
    _, files = hub.find("lab/digits", "main")
    card = files["README.md"].decode()
    assert card.startswith("---\nlicense: mit\n") and "| digits | accuracy | 0.94 |" in card
    assert "num 64, seed 7" in card and "--workdir=hf://lab/digits" in card
    assert "2 experts of rank 2, 2 latent steps" in card and '"latent_steps": 2' in card
    for path in (tmp_path / "out").iterdir():
        assert files[path.name] == path.read_bytes()
    everything = [*files.values(), stderr.encode()]
    assert not any(TOKEN.encode() in content for content in everything)
    images = []
    for workdir in (trained, "hf://lab/digits"):
        out = f"{tmp_path}/{len(images)}.npz"
        code, _, stderr = run_entry("sample", f"--workdir={workdir}", f"--out={out}", "--num=4")
        assert code == 0, stderr
        images.append(np.load(out)["arr_0"])
    np.testing.assert_array_equal(*images)


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        (["--scores="], "name the license of the weights with --license"),
        (["--license=mit"], r"name its scores with --scores=DIR/scores\.json"),
        (
            ["--license=mit", "--scores=nowhere.json"],
            r"--scores=nowhere\.json: there is no scores\.json",
        ),
        (["--license=mit", "--scores=", "--push=digits"], "give OWNER/NAME"),
    ],
)
def test_an_incomplete_card_is_refused(flags, match, hub, trained, tmp_path):
    code, _, stderr = push(trained, tmp_path / "out", *flags)
    assert code == 2 and stderr.startswith("error: ")
    assert re.search(match, stderr)
    assert not (tmp_path / "out").exists()


def test_without_a_token_nothing_is_written(hub, trained, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    code, _, stderr = push(trained, tmp_path / "out", "--license=mit", "--scores=")
    assert code == 2 and "needs a token: log in with `hf auth login`" in stderr
    assert not (tmp_path / "out").exists()


def test_a_failed_upload_keeps_the_export(hub, trained, tmp_path, monkeypatch):
    hub.add("lab/digits", {})
    monkeypatch.setattr(Hub, "add", lambda *_: (_ for _ in ()).throw(KeyError))
    code, _, stderr = push(trained, tmp_path / "out", "--license=mit", "--scores=")
    assert code == 1 and "is complete, but wasn't uploaded" in stderr
    assert "hf upload lab/digits" in stderr
    assert (tmp_path / "out/thinking.safetensors").exists()


def test_only_what_is_read_may_be_on_the_hub(trained, refused):
    sample = ("sample", f"--workdir={trained}", "--num=1")
    refused(*sample, "--out=hf://lab/out", match="hf:// isn't supported")

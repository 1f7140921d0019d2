"""FD-DINOv2: features against facebookresearch/dinov2, and the flags of the adm suite."""

import json
import sys

import numpy as np
import pytest
import scipy.linalg
from benchmarks import raises_user_error
from conftest import run_entry
from etils import epath
from golden.seeded import seeded_weights
from published_weights import golden
from safetensors.numpy import save_file
from stand_in_extractor import make_extractor

from tp_jax.evals.adm import suite
from tp_jax.evals.adm.dinov2 import load_dinov2, prepare


def save_dinov2(folder, **changes):
    """Write the model of dinov2.npz as Hugging Face's Hub has it."""
    arrays = golden("dinov2")
    weights = seeded_weights(json.loads(str(arrays["shapes"])), int(arrays["seed"]))
    folder.mkdir()
    save_file(weights | changes, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(str(arrays["config"]))
    return epath.Path(folder)


def write_images(path, seed, count):
    """Write random images of 20×20 pixels; return them."""
    images = np.random.RandomState(seed).randint(0, 256, (count, 20, 20, 3), np.uint8)
    np.savez(path, arr_0=images)
    return images


def distance(a, b):
    """The Fréchet distance of features [N, D], by its definition."""
    root = scipy.linalg.sqrtm(np.cov(a, rowvar=False) @ np.cov(b, rowvar=False)).real
    trace = np.trace(np.cov(a, rowvar=False) + np.cov(b, rowvar=False) - 2 * root)
    return np.sum((a.mean(0) - b.mean(0)) ** 2) + trace


def test_images_are_resized_and_normalised():
    image = np.full((30, 50, 3), 255, np.uint8)
    white = (1 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(
        prepare(image), np.broadcast_to(white[:, None, None], (3, 224, 224)), rtol=1e-5
    )


@pytest.fixture
def torch():
    pytest.importorskip("transformers")
    return pytest.importorskip("torch")


@pytest.mark.text
def test_features_equal_those_of_the_official_code(torch, tmp_path):
    arrays = golden("dinov2")
    network = load_dinov2(save_dinov2(tmp_path / "dinov2"), 2, "cpu")
    np.testing.assert_allclose(network.features(arrays["images"]), arrays["features"], atol=2e-5)


@pytest.mark.text
def test_the_score_stands_beside_fid(torch, monkeypatch, tmp_path):
    monkeypatch.setattr(suite, "load_extractor", lambda *args: make_extractor())
    folder = save_dinov2(tmp_path / "dinov2")
    samples = write_images(tmp_path / "samples.npz", 0, 40)
    reference = write_images(tmp_path / "reference.npz", 1, 50)
    inception = f"--inception={tmp_path}"

    def scores(name, *flags):
        out = tmp_path / f"{name}.json"
        code, stdout, stderr = run_entry("evaluate", inception, f"--out={out}", *flags)
        assert code == 0, stderr
        return json.loads(out.read_text()), stdout

    from_samples = f"--samples={tmp_path / 'samples.npz'}"
    network = f"--dinov2={folder}"
    found, table = scores(
        "images", from_samples, f"--reference={tmp_path / 'reference.npz'}", network
    )
    features = load_dinov2(folder, 8, "cpu").features
    assert found["fd_dinov2"] == pytest.approx(
        distance(features(samples), features(reference)), rel=1e-4
    )
    assert "fd_dinov2" in table and found["fid"] > 0
    assert (found["dinov2_count"], found["dinov2_reference_count"]) == (40, 50)
    assert found["precision_counts"] == [40, 50]
    # A file of statistics gives the same score.
    statistics = tmp_path / "statistics.npz"
    scores(
        "write", f"--samples={tmp_path / 'reference.npz'}", f"--save_statistics={statistics}",
        network,
    )  # fmt: skip
    again, _ = scores("statistics", from_samples, f"--reference={statistics}", network)
    assert again["fd_dinov2"] == pytest.approx(found["fd_dinov2"], rel=1e-6)
    # Of other weights, it is refused.
    other = save_dinov2(tmp_path / "other", **{"layernorm.bias": np.ones(16, np.float32)})
    flags = [from_samples, f"--reference={statistics}", inception, f"--dinov2={other}"]
    code, _, stderr = run_entry("evaluate", *flags)
    assert code == 2 and "statistics.npz has statistics of other DINOv2 weights" in stderr
    # Statistics without DINOv2 and without images don't do.
    scores("plain", f"--samples={tmp_path / 'reference.npz'}", f"--save_statistics={statistics}")
    code, _, stderr = run_entry("evaluate", *flags)
    assert code == 2 and "statistics.npz has neither images nor DINOv2 statistics" in stderr


@pytest.mark.text
def test_other_folders_are_refused(torch, tmp_path):
    folder = save_dinov2(tmp_path / "dinov2", extra=np.ones(2, np.float32))
    with raises_user_error("extra isn't used by this model"):
        load_dinov2(folder, 2)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    with raises_user_error("describes a model of type 'bert', expected 'dinov2'"):
        load_dinov2(folder, 2)


def test_the_missing_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch", None)
    with raises_user_error("--dinov2 needs torch: pip install -e '.[text]'"):
        load_dinov2(epath.Path(tmp_path), 2)

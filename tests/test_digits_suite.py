"""The suite digits: its Fréchet distance and its classifier, on real digits and on noise."""

import json

import numpy as np
import pytest
import scipy.linalg
from conftest import run_entry, tiny_config
from sklearn.datasets import load_digits

from tp_jax import data
from tp_jax.evals.digits.scores import make_judge


def images_of(part):
    """The digits of a part, uint8 [N, 8, 8, 1], and their labels."""
    records = [part[index] for index in range(len(part))]
    images = np.stack([record["image"] for record in records])[..., None]
    return images, np.array([record["label"] for record in records])


@pytest.fixture(scope="module")
def parts():
    """The training and the held-out digits, if a fifth is held out."""
    config = tiny_config()
    config.validation.fraction = 0.2
    source = data.open_source(config)
    return data.training_part(source, config), data.held_out_part(source, config)


@pytest.fixture(scope="module")
def judge(parts):
    return make_judge(*parts)


def test_frechet_distance_equals_the_formula_on_components_by_singular_values(parts, judge):
    (images, labels), (others, _) = (images_of(part) for part in parts)
    training, reference = (each.reshape(len(each), 64) / 255 for each in (images, others))
    chosen = training[:300]
    _, _, axes = np.linalg.svd(training - training.mean(axis=0), full_matrices=False)
    a, b = ((each - training.mean(axis=0)) @ axes[:20].T for each in (chosen, reference))
    root = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    wanted = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    scores = judge.score(images[:300], labels[:300])
    assert scores.frechet_distance == pytest.approx(wanted, rel=1e-6)
    assert scores.features["components"] == 20
    assert scores.features["explained_variance"] == pytest.approx(0.89, abs=0.02)


def test_held_out_digits_have_distance_zero_and_their_classes(parts, judge):
    images, labels = images_of(parts[1])
    scores = judge.score(images, labels)
    assert scores.frechet_distance == pytest.approx(0, abs=1e-6)
    assert scores.accuracy == scores.classifier_accuracy > 0.97
    assert scores.reference_images == len(images) and scores.reference == "held-out digits"
    wrong = judge.score(images, (labels + 1) % 10)
    assert wrong.accuracy < 0.02


def test_worse_images_are_further_away(judge, parts):
    images, labels = images_of(parts[0])
    rng = np.random.default_rng(0)
    distances = [
        judge.score(np.clip(images + rng.normal(0, noise, images.shape), 0, 255), labels)
        for noise in (0, 20, 60)
    ]
    found = [scores.frechet_distance for scores in distances]
    assert found[0] == pytest.approx(distances[0].frechet_distance_of_training)
    assert found[0] < found[1] < found[2]
    one_class = judge.score(images[labels == 3], labels[labels == 3])
    assert one_class.frechet_distance > 3 * found[0] and one_class.accuracy > 0.99


def test_without_held_out_digits_all_are_the_reference():
    source = data.open_source(tiny_config())
    scores = make_judge(data.training_part(source, tiny_config()), None).score(
        *images_of(data.training_part(source, tiny_config()))
    )
    assert scores.reference == "all digits" and scores.reference_images == 1797
    assert scores.frechet_distance == pytest.approx(0, abs=1e-6)
    assert scores.frechet_distance_of_training is None
    assert 0.95 < scores.classifier_accuracy < 1 and "5 parts" in scores.classifier["tested_by"]
    real = load_digits()
    assert scores.images == len(real.images)


def test_scores_are_averaged_over_seeds(tmp_path):
    for seed, (distance, accuracy) in enumerate(((0.25, 0.5), (0.75, 1.0))):
        folder = tmp_path / "think" / f"seed{seed}"
        folder.mkdir(parents=True)
        content = {"frechet_distance": distance, "accuracy": accuracy}
        (folder / "scores.json").write_text(json.dumps(content))
    arguments = ["--suite=digits", f"--collect={tmp_path}", f"--out={tmp_path / 'all.json'}"]
    code, stdout, stderr = run_entry("evaluate", *arguments)
    assert code == 0, stderr
    assert "| frechet distance | 0.5 ± 0.3536 |" in stdout
    assert "| accuracy | 75.0 ± 35.4 |" in stdout


def test_models_of_other_data_are_refused(trained_shapes, tmp_path, refused):
    out = f"--out={tmp_path / 'place' / 'out'}"
    refused(
        "evaluate", "--suite=digits", f"--workdir={trained_shapes}", out,
        match="--suite=digits.* was trained on shapes, but", watch=[trained_shapes],
    )  # fmt: skip
    refused("evaluate", "--suite=digits", "--workdir=w", "--num=1", out, match="num=1: must be 2")

"""`tp_jax.Model`: loading, sampling and tracing from Python."""

import logging

import jax
import numpy as np
import pytest
from conftest import run_entry
from PIL import Image

import tp_jax
from tp_jax.messages.errors import UserError
from tp_jax.parallel.randomness import stream_key
from tp_jax.pictures.grids import to_uint8
from tp_jax.thinking.gate import GateRandomness
from tp_jax.thinking.layer import ThinkingOptions

LABELS = [3, 5, 8]


@pytest.fixture(scope="module")
def model(trained):
    return tp_jax.Model.load(str(trained))


def test_samples_are_those_of_the_command(model, trained, tmp_path):
    options = [f"--workdir={trained}", "--num=3", "--labels=3,5,8", "--seed=7", "--latent_steps=1"]
    code, _, error = run_entry("sample", *options, f"--out={tmp_path / 'images'}")
    assert code == 0, error
    images = model.sample(labels=LABELS, seed=7, latent_steps=1)
    assert images.shape == (3, 8, 8, 1) and images.dtype == np.uint8
    for image, path in zip(images, sorted((tmp_path / "images").glob("0*.png")), strict=True):
        np.testing.assert_array_equal(image[..., 0], np.asarray(Image.open(path)))


def test_the_number_of_images_defaults_to_one_per_label_or_class(model):
    assert len(model.sample(labels=LABELS, sampler_steps=1)) == 3
    assert len(model.sample(sampler_steps=1)) == 10
    assert len(model.sample(5, labels=LABELS, sampler_steps=1)) == 5


def test_a_sample_does_not_depend_on_the_batch_size(model):
    whole = model.sample(6, seed=1)
    np.testing.assert_array_equal(model.sample(6, seed=1, batch_size=4), whole)


def test_the_trace_agrees_with_a_plain_loop_over_the_sampler_steps(model):
    """Euler's method without guidance, step by step in Python."""
    routing = model.trace(labels=LABELS, seed=2, guidance_scale=1.0, latent_steps=3)
    loaded, steps = model.loaded, model.loaded.built.sampler.steps
    noise_key, model_key = jax.random.split(stream_key(2, "generation"))
    index, condition = np.arange(3, dtype=np.int32), {"label": np.array(LABELS, np.int32)}
    first = jax.random.fold_in(noise_key, 0)
    x = np.stack([jax.random.normal(jax.random.fold_in(first, i), (8, 8, 1)) for i in index])
    sigmas = loaded.built.objective.schedule(steps).astype(np.float32)
    for step in range(steps):
        key = jax.random.fold_in(model_key, step)
        options = ThinkingOptions(GateRandomness(key, index, train=False), 3, trace=True)
        timestep = np.full(3, 1000 * sigmas[step], np.float32)
        velocity, found = loaded.model.apply(
            {"params": loaded.params}, x, timestep, condition, options
        )
        assert routing.timesteps[step] == pytest.approx(timestep[0])
        for block in (1, 2):
            np.testing.assert_array_equal(routing.experts[block][step], found[block].expert)
            np.testing.assert_allclose(
                routing.probabilities[block][step], found[block].probabilities, atol=1e-5
            )
        x = x + (sigmas[step + 1] - sigmas[step]) * velocity
    assert set(routing.experts) == {1, 2} and routing.grid == (2, 2)
    assert routing.experts[1].shape == (steps, 3, 3, 4)
    difference = routing.images.astype(int) - to_uint8(np.asarray(x))
    assert np.abs(difference).max() <= 1


def test_tracing_changes_no_image_and_joins_batches(model):
    images = model.sample(6, seed=3)
    routing = model.trace(6, seed=3, batch_size=4)
    np.testing.assert_array_equal(routing.images, images)
    whole = model.trace(6, seed=3)
    for block, experts in whole.experts.items():
        np.testing.assert_array_equal(routing.experts[block], experts)


def test_a_model_of_text_samples_from_prompts(trained_shapes):
    model = tp_jax.Model.load(trained_shapes)
    images = model.sample(prompts=["a cross", "two rings"], sampler_steps=2)
    assert images.shape[0] == 2 and images.shape[-1] == 3
    with pytest.raises(UserError, match="--prompts is missing"):
        model.sample()
    with pytest.raises(UserError, match="layers is empty: the model has no routing"):
        model.trace(prompts=["a cross"])


def test_wrong_requests_name_what_is_wrong(model, tmp_path):
    with pytest.raises(UserError, match="label 10 is out of range: the model has 0 to 9"):
        model.sample(labels=[10])
    with pytest.raises(UserError, match=r"labels=3: give a list, such as \[3\]"):
        model.sample(labels=3)
    with pytest.raises(UserError, match="nowhere"):
        tp_jax.Model.load(tmp_path / "nowhere")
    with pytest.raises(AttributeError, match="has no attribute 'Modell'"):
        tp_jax.Modell  # noqa: B018


def test_loading_logs_no_warnings(trained, caplog):
    with caplog.at_level(logging.WARNING):
        tp_jax.Model.load(trained)
    assert not caplog.records

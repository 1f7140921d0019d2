"""The denoising loss on validation examples: against a plain loop, on meshes, and paired."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from conftest import run_entry, tiny_config
from etils import epath
from scipy import stats
from tiny_models import TINY, random_params

from tp_jax import config as config_lib
from tp_jax import data
from tp_jax.data.source import SEEN, UNSEEN
from tp_jax.diffusion.flow import RectifiedFlow
from tp_jax.diffusion.gaussian import GaussianDiffusion
from tp_jax.evals.validation.losses import Losses, Validation
from tp_jax.evals.validation.results import estimate, summarise
from tp_jax.messages.errors import UserError
from tp_jax.models import build_model
from tp_jax.parallel.axes import DATA_PARALLEL
from tp_jax.parallel.mesh import create_mesh
from tp_jax.parallel.randomness import sample_keys, stream_key
from tp_jax.thinking.gate import GateRandomness
from tp_jax.thinking.layer import ThinkingOptions
from tp_jax.train import summary
from tp_jax.train.loop import train
from tp_jax.train.setup import check

EXAMPLES, TIMES = 6, 3
FLOW = RectifiedFlow(shift=2.0, time_std=1.5)


def make_validation(kind, devices=None, batch_size=4, **fields):
    """The validation of a tiny model on noise, and random parameters."""
    config = config_lib.default(kind, "flow")
    # A dataclass has fields that `config.model` lacks, and the other way round.
    known = {name: getattr(TINY[kind], name) for name in config.model if hasattr(TINY[kind], name)}
    known.pop("thinking")
    config.model.update(known | {"depth": 2})
    config.model.thinking.update(layers=(0,), rank=2, gate_width=4)
    config.model.thinking.gate = "random" if kind == "dit" else "learned"
    config.train.batch_size = 4
    config.data.source = "synthetic"
    config.validation.num = EXAMPLES
    parts = data.open_validation(data.open_source(config), config)
    model = build_model(config_lib.model_config(config))
    mesh = create_mesh(DATA_PARALLEL, devices)
    settings = {"seed": 0, "times": TIMES, "batch_size": batch_size} | fields
    return Validation(model, FLOW, mesh, parts, **settings), random_params(model)


def losses_in_a_loop(validation, params):
    """The loss of each example at each time, one after another, from the formulas."""
    model, examples = validation.model, validation.parts[SEEN]
    found = np.zeros((EXAMPLES, TIMES, 2))
    predict = jax.jit(lambda *inputs: model.apply({"params": params}, *inputs)[0])
    for i in range(EXAMPLES):
        batch = examples.batch(np.array([i]))
        shift = np.random.default_rng(0).random()
        for k in range(TIMES):
            index = np.array([i], np.int32)
            key = sample_keys(stream_key(0, "validation noise", k), index)[0]
            noise = np.asarray(jax.random.normal(key, batch["x"].shape[1:]))[None]
            quantile = (k + (shift + i * (np.sqrt(5) - 1) / 2) % 1) / TIMES
            sigma = stats.logistic.cdf(1.5 * stats.norm.ppf(quantile))
            sigma = np.float32(2 * sigma / (1 + sigma))
            x_t = (1 - sigma) * batch["x"] + sigma * noise
            randomness = GateRandomness(stream_key(0, "validation routing", k), index, train=False)
            time = np.full(1, 1000 * sigma)
            output = predict(x_t, time, batch["condition"], ThinkingOptions(randomness))
            error = np.asarray(output, np.float64) - (noise - batch["x"])
            found[i, k] = np.square(error).mean(), 1000 * sigma
    return found


@pytest.mark.parametrize("kind", ["dit", pytest.param("mmdit", marks=pytest.mark.slow)])
def test_losses_equal_those_of_a_plain_loop(kind):
    validation, params = make_validation(kind)
    found = validation.losses(params, SEEN)
    wanted = losses_in_a_loop(validation, params)
    assert found.losses.shape == (EXAMPLES, TIMES)
    np.testing.assert_allclose(found.timesteps, wanted[..., 1], rtol=1e-4)
    np.testing.assert_allclose(found.losses, wanted[..., 0], rtol=2e-4)
    assert len(np.unique(found.losses)) == EXAMPLES * TIMES
    assert summarise(found).loss == pytest.approx(wanted[..., 0].mean(), rel=1e-4)


@pytest.fixture(scope="module")
def on_four_devices():
    """A validation with a random gate, its parameters and losses."""
    validation, params = make_validation("dit")
    return validation, params, validation.losses(params, SEEN)


def test_same_model_gives_the_same_bits(on_four_devices):
    validation, params, losses = on_four_devices
    again = validation.losses(params, SEEN)
    np.testing.assert_array_equal(again.losses, losses.losses)
    np.testing.assert_array_equal(again.timesteps, losses.timesteps)
    assert again.digest == losses.digest


def test_neither_batch_size_nor_mesh_changes_the_losses(on_four_devices, one_device):
    _, params, losses = on_four_devices
    # The last batch has 1 of 5 examples; with four devices 2 of 4.
    validation, _ = make_validation("dit", one_device, batch_size=5)
    found = validation.losses(params, SEEN)
    np.testing.assert_allclose(found.losses, losses.losses, rtol=1e-5)
    np.testing.assert_array_equal(found.timesteps, losses.timesteps)
    assert found.digest == losses.digest


def test_tokens_may_halt(on_four_devices):
    """If all tokens halt after the first latent step, the losses are those of T = 1."""
    validation, params, losses = on_four_devices
    assert (losses.latent_steps == validation.model.config.thinking.latent_steps).all()
    halted = dataclasses.replace(validation, halting_epsilon=1e9).losses(params, SEEN)
    assert (halted.latent_steps == 1).all()
    one = dataclasses.replace(validation, latent_steps=1).losses(params, SEEN)
    np.testing.assert_allclose(halted.losses, one.losses, rtol=1e-4)
    assert abs(one.losses / losses.losses - 1).max() > 1e-3


def test_pairing_removes_most_of_the_variance(on_four_devices):
    validation, params, losses = on_four_devices
    change = random_params(validation.model, seed=7, scale=3e-3)
    changed = jax.tree.map(lambda a, b: a + b, params, change)
    other = validation.losses(changed, SEEN)
    assert other.digest == losses.digest
    paired = (other.losses - losses.losses).mean(axis=1).std(ddof=1)
    unpaired = np.hypot(*(each.losses.mean(axis=1).std(ddof=1) for each in (other, losses)))
    assert 0 < paired < 0.1 * unpaired


def test_another_seed_of_validation_gives_other_noise_and_times(on_four_devices):
    _, params, losses = on_four_devices
    other, _ = make_validation("dit", seed=1)
    found = other.losses(params, SEEN)
    assert found.digest == losses.digest  # Only the source was opened with the same seed.
    assert not np.isin(found.losses, losses.losses).any()
    assert (np.abs(found.timesteps - losses.timesteps) > 1e-3).all()


def test_quantiles_cover_the_distribution_of_times_evenly(on_four_devices):
    validation, *_ = on_four_devices
    quantiles = validation.quantiles(np.arange(50))
    assert quantiles.dtype == np.float32 and quantiles.shape == (50, TIMES)
    assert (np.floor(quantiles * TIMES) == np.arange(TIMES)).all()
    # The discrepancy of independent numbers is about 0.87 / √150 = 0.07.
    assert stats.kstest(quantiles.ravel(), "uniform").statistic < 0.02


@pytest.mark.parametrize("objective", [FLOW, GaussianDiffusion(num_timesteps=40)])
def test_times_at_quantiles_are_distributed_as_in_training(objective):
    keys = jax.random.split(jax.random.key(0), 2_000)
    sampled = np.asarray(objective.sample_times(keys))
    quantiles = (np.arange(2_000, dtype=np.float32) + 0.5) / 2_000
    times = np.asarray(objective.times_at(quantiles))
    assert times.dtype == sampled.dtype and (np.diff(times) >= 0).all()
    assert stats.ks_2samp(times, sampled).pvalue > 0.01
    if isinstance(objective, GaussianDiffusion):
        np.testing.assert_array_equal(np.unique(times), np.arange(40))


# Summaries


def test_means_and_bands_equal_plain_sums():
    rng = np.random.default_rng(0)
    losses, timesteps = rng.gamma(2.0, size=(30, 4)), rng.uniform(0, 1000, (30, 4))
    timesteps[0, 0] = 1000.0
    summary = summarise(Losses(losses, timesteps, np.full_like(losses, 2), "digest"))
    assert summary.loss == pytest.approx(losses.mean())
    wanted = losses.mean(axis=1).std(ddof=1) / np.sqrt(30)
    assert summary.standard_error == pytest.approx(wanted)
    np.testing.assert_allclose(summary.losses, losses.mean(axis=1))
    assert list(summary.bands) == ["0-250", "250-500", "500-750", "750-1000"]
    assert sum(band.count for band in summary.bands.values()) == 120
    band = [loss for loss, t in zip(losses.flat, timesteps.flat, strict=True) if t >= 750]
    assert summary.bands["750-1000"].loss == pytest.approx(np.mean(band))


def test_standard_error_of_a_band_is_that_of_the_jackknife():
    rng = np.random.default_rng(1)
    losses = rng.gamma(2.0, size=(200, 1)) + rng.normal(size=(200, 3))
    chosen = rng.random((200, 3)) < 0.4
    left_out = [losses[np.arange(200) != i][chosen[np.arange(200) != i]].mean() for i in range(200)]
    jackknife = np.sqrt(199 * np.var(left_out))
    assert estimate(losses, chosen).standard_error == pytest.approx(jackknife, rel=0.03)


# Runs


@pytest.fixture(scope="module")
def validated(tmp_path_factory):
    """A workdir of digits, validated and scored in training."""
    workdir = epath.Path(tmp_path_factory.mktemp("validated")) / "run"
    config = tiny_config(samples=0)
    config.model.depth, config.model.thinking.layers = 2, (1,)
    config.validation.update(every_steps=3, num=10, times=2, batch_size=4, fraction=0.1)
    config.evaluation.update(suite="digits", batch_size=20, every_steps=6)
    config.evaluation.digits.num = 20
    train(config, workdir)
    return workdir


def test_losses_in_training_equal_those_of_tp_jax_evaluate(validated, tmp_path):
    files = sorted((validated / "validation").iterdir())
    assert [path.name for path in files] == ["00000003.json", "00000006.json"]
    first, last = (json.loads(path.read_text()) for path in files)
    assert first["digest"] == last["digest"] and first["losses"] != last["losses"]
    arguments = ["--suite=validation", f"--workdir={validated}", "--batch_size=4"]
    code, stdout, stderr = run_entry("evaluate", *arguments, f"--out={tmp_path / 'out'}")
    assert code == 0, stderr
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert scores["losses"] == last["losses"] and scores["loss"] == last["loss"]
    assert scores["model"]["checkpoint"] == 6 and scores["settings"] == last["settings"]
    assert len(scores["losses"]) == 10 and f"{scores['loss']:.5g} ± " in stdout
    flags = ["--checkpoint=3", "--noema", "--latent_steps=1"]
    code, _, stderr = run_entry("evaluate", *arguments, *flags, f"--out={tmp_path / 'other'}")
    assert code == 0, stderr
    other = json.loads((tmp_path / "other" / "scores.json").read_text())
    assert other["digest"] == scores["digest"] and other["losses"] != first["losses"]


def test_generated_worlds_have_a_loss_of_what_they_hold_out(trained_shapes, tmp_path):
    arguments = ["--suite=validation", f"--workdir={trained_shapes}", "--batch_size=256"]
    code, _, stderr = run_entry("evaluate", *arguments, f"--out={tmp_path / 'out'}")
    assert code == 0, stderr
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    unseen = scores[UNSEEN]
    assert unseen["count"] == scores["count"] == 512 * 8
    assert unseen["digest"] != scores["digest"] and unseen["loss"] != scores["loss"]


def test_losses_are_averaged_over_seeds(tmp_path):
    for variant, losses in (("base", (1.0, 1.25)), ("think", (0.5, 0.75))):
        for seed, loss in enumerate(losses):
            folder = tmp_path / variant / f"seed{seed}"
            folder.mkdir(parents=True)
            content = {"loss": loss, "bands": {"0-250": {"loss": 2 * loss}}}
            content[UNSEEN] = {"loss": 4 * loss, "bands": {}}
            (folder / "scores.json").write_text(json.dumps(content))
    out = tmp_path / "all.json"
    code, stdout, stderr = run_entry(
        "evaluate", "--suite=validation", f"--collect={tmp_path}", f"--out={out}"
    )
    assert code == 0, stderr
    mean = json.loads(out.read_text())["variants"]["think"]["mean"]
    assert mean == {"timestep 0-250 loss": 1.25, "loss": 0.625, "unseen loss": 2.5}
    assert "| loss | 1.125 ± 0.1768 | 0.625 ± 0.1768 |" in stdout and "Percent" not in stdout


def test_a_workdir_that_held_nothing_out_says_what_to_set(trained, tmp_path, refused):
    refused(
        "evaluate", "--suite=validation", f"--workdir={trained}",
        f"--out={tmp_path / 'place' / 'out'}", match="nothing of digits was held out.*fraction",
        watch=[trained],
    )  # fmt: skip


def test_the_start_says_what_is_held_out_and_that_a_base_has_seen_it(trained, tmp_path):
    config = tiny_config(trainable="thinking")
    config.init.base = str(trained)
    assert "held out" not in summary._data(check(config, epath.Path(tmp_path) / "run"))
    config.validation.fraction = 0.1
    checked = check(config, epath.Path(tmp_path) / "run")
    num = len(data.held_out_part(data.open_source(config), config))
    assert 150 < num < 210
    assert f"1,797 images in 10 classes (0, 1, 2, 3, 4, …), {num} of them" in summary._data(checked)
    assert "trained on records that this run holds out" in summary._base(checked)


def test_validation_is_no_suite_of_training(tmp_path):
    config = tiny_config()
    config.evaluation.suite = "validation"
    with pytest.raises(UserError, match=r"set config\.validation\.every_steps"):
        train(config, epath.Path(tmp_path) / "run")


# The digits suite runs on the same workdir.


@pytest.mark.slow
def test_digits_scores_in_training_equal_those_of_tp_jax_evaluate(validated, tmp_path):
    arguments = ["--suite=digits", f"--workdir={validated}", "--num=20", "--batch_size=20"]
    code, stdout, stderr = run_entry("evaluate", *arguments, f"--out={tmp_path / 'out'}")
    assert code == 0, stderr
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    in_training = json.loads((validated / "evaluations" / "00000006.json").read_text())
    assert in_training == {name: scores[name] for name in in_training}
    assert scores["reference"] == "held-out digits" and scores["images"] == 20
    assert scores["features"]["components"] == 20
    assert scores["features"]["fitted_on"] + scores["reference_images"] == 1797
    assert "20 principal components" in stdout
    assert (tmp_path / "out" / "grid.png").exists()

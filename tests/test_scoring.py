"""Scores of generated images, in training and in sweeps; a fake network replaces Inception."""

import csv
import dataclasses
import json

import numpy as np
import pytest
from conftest import run_entry, tiny_config
from etils import epath
from stand_in_extractor import make_extractor

from tp_jax.evals.adm import generator_scorer as scoring
from tp_jax.evals.adm.reference import read_reference
from tp_jax.evals.adm.scores import score_batches
from tp_jax.evals.adm.sweep import Sweep, run_sweep
from tp_jax.messages.errors import UserError
from tp_jax.pictures.reading import open_images, read_rgb
from tp_jax.sampling.draw import Drawing, draw_samples
from tp_jax.sampling.loaded import load, without_thinking
from tp_jax.train.loop import train

NUM = 12


@pytest.fixture(autouse=True)
def extractor(monkeypatch):
    extractor = make_extractor()
    monkeypatch.setattr(scoring, "load_extractor", lambda *args: extractor)
    return extractor


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    path = epath.Path(tmp_path_factory.mktemp("reference")) / "real.npz"
    images = np.random.RandomState(0).randint(0, 256, (40, 8, 8, 1)).astype(np.uint8)
    with path.open("wb") as file:
        np.savez(file, arr_0=images)
    return path


def scores_of_file(path, reference, extractor):
    images = open_images(epath.Path(path))
    found = score_batches(
        images.batches(5, images.count), images.count, read_reference(reference), extractor
    )
    return dataclasses.asdict(found)


def assert_same_scores(found, wanted):
    for name in ("fid", "sfid", "inception_score", "precision", "recall"):
        assert found[name] == pytest.approx(wanted[name], rel=1e-4), name


@pytest.fixture
def sweep(trained, reference, tmp_path):
    return Sweep(
        trained, epath.Path(tmp_path) / "sweep", reference, epath.Path("unused"),
        guidance_scales=(1.0, 90.0), latent_steps=(1, 2), num=NUM, batch_size=8,
    )  # fmt: skip


def test_a_sweep_cell_scores_what_tp_jax_sample_generates(
    sweep, trained, reference, extractor, tmp_path
):
    run_sweep(sweep)
    with (sweep.out / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    cells = [(row["series"], float(row["guidance_scale"])) for row in rows]
    assert cells == [(s, g) for g in (1, 90) for s in ("base", "T=1", "T=2")]
    drawing = Drawing(
        trained, epath.Path(tmp_path) / "a.npz", num=NUM, batch_size=4, latent_steps=1,
        sampler_changes={"guidance_scale": 90.0},
    )  # fmt: skip
    draw_samples(drawing)
    wanted = scores_of_file(drawing.out, reference, extractor)
    cells = json.loads((sweep.out / "sweep.json").read_text())["cells"]
    assert_same_scores(cells[4], wanted)
    # After so few updates the parameters differ visibly only under strong guidance.
    assert cells[3]["fid"] != cells[4]["fid"] != cells[1]["fid"]
    height, width, _ = read_rgb(sweep.out / "sweep.png").shape
    assert width > height > 300


def test_a_sweep_resumes_at_the_next_cell_and_refuses_other_settings(sweep, monkeypatch):
    score, scored, stop_at = scoring.Scorer.score, [], 2

    def record_score(self, generator, *args):
        if len(scored) == stop_at:
            raise KeyboardInterrupt
        scored.append((generator.sampler.guidance_scale, generator.latent_steps))
        return score(self, generator, *args)

    monkeypatch.setattr(scoring.Scorer, "score", record_score)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(sweep)
    stop_at = None
    run_sweep(sweep)
    assert scored == [(scale, steps) for scale in (1.0, 90.0) for steps in (None, 1, 2)]
    with pytest.raises(
        UserError, match="cells of a different sweep: seed was 0, now 1: choose another"
    ):
        run_sweep(dataclasses.replace(sweep, seed=1))


def test_the_base_of_a_run_is_the_checkpoint_it_started_from(trained, tmp_path):
    config = tiny_config(steps=2)
    config.init.base = str(trained)
    train(config, epath.Path(tmp_path) / "run")
    loaded = load(epath.Path(tmp_path) / "run")
    base, name = without_thinking(loaded)
    assert name == str(trained) and not base.model.config.thinking.layers
    wanted = load(trained).params["base"]["final"]["out"]["kernel"]
    np.testing.assert_array_equal(base.params["base"]["final"]["out"]["kernel"], wanted)
    assert (np.asarray(loaded.params["base"]["final"]["out"]["kernel"]) != wanted).any()
    assert without_thinking(load(trained))[1] == "the same weights, thinking off"


def test_training_scores_the_averaged_parameters(reference, extractor, tmp_path):
    config, workdir = tiny_config(), epath.Path(tmp_path) / "run"
    config.evaluation.update(suite="adm", every_steps=4, batch_size=8)
    config.evaluation.adm.update(num=NUM, reference=str(reference), inception="x")
    train(config, workdir)
    found = sorted(path.name for path in (workdir / "evaluations").iterdir())
    assert found == ["00000004.json", "00000006.json"]
    drawing = Drawing(workdir, epath.Path(tmp_path) / "a.npz", num=NUM, batch_size=4)
    draw_samples(drawing)
    wanted = scores_of_file(drawing.out, reference, extractor)
    assert_same_scores(json.loads((workdir / "evaluations" / found[1]).read_text()), wanted)


def test_a_reference_of_another_size_is_refused_before_training(reference, tmp_path):
    config, workdir = tiny_config(), epath.Path(tmp_path) / "run"
    config.model.update(image_size=16, channels=3)
    config.data.source = "synthetic"
    config.evaluation.suite = "adm"
    config.evaluation.adm.update(reference=str(reference), inception="x")
    with pytest.raises(UserError, match="images are 16×16, but those of real.npz are 8×8"):
        train(config, workdir)
    assert not workdir.exists()


def test_invalid_sweeps_are_refused_before_sampling(sweep, tmp_path):
    (tmp_path / "file").write_text("")
    cases = [
        (dict(num=1), "--num=1: must be 2 or more"),
        (dict(guidance_scales=()), "give at least one of each"),
        (dict(out=epath.Path(tmp_path) / "file"), "is a file: name a folder"),
        (dict(out=epath.Path(tmp_path)), "holds files but no description.json"),
        (dict(sampler_changes={"guidance_channels": 9}), "guidance_channels=9: the model has 1"),
        (dict(guidance_scales=(float("nan"),)), "guidance_scale=nan: give a finite number"),
    ]
    for changes, match in cases:
        with pytest.raises(UserError, match=match):
            run_sweep(dataclasses.replace(sweep, **changes))
    assert not sweep.out.exists()


def test_scoring_latents_without_an_autoencoder_is_refused(reference, tmp_path):
    config = tiny_config()
    config.model.channels, config.data.source = 4, "synthetic"
    config.evaluation.suite = "adm"
    config.evaluation.adm.update(reference=str(reference), inception="x")
    with pytest.raises(UserError, match="latents of 4 channels.*config.autoencoder.path"):
        train(config, epath.Path(tmp_path) / "run")
    config.evaluation.adm.inception = ""
    with pytest.raises(UserError, match="config.evaluation.adm.inception is empty"):
        train(config, epath.Path(tmp_path) / "run")


def test_a_sweep_from_the_command_line(trained, reference, tmp_path):
    code, output, errors = run_entry(
        "evaluate", "--sweep", f"--workdir={trained}", f"--out={tmp_path / 's'}", "--inception=x",
        f"--reference={reference}", "--guidance_scales=1", "--latent_steps=2", "--num=8",
        "--batch_size=8",
    )  # fmt: skip
    assert code == 0, errors
    assert len([line for line in output.splitlines() if line.strip().startswith("1 ")]) == 2, output
    code, _, errors = run_entry("evaluate", "--sweep", "--guidance_scales=1", "--workdir=W")
    assert code == 2 and "--out is missing" in errors
    code, _, errors = run_entry("evaluate", "--sweep", "--guidance_scales=a", "--workdir=W")
    assert code == 2 and "--guidance_scales=a: give numbers" in errors

"""Evaluation suites that run during training, on the averaged parameters."""

import json

import pytest
from conftest import run_entry, tiny_config
from etils import epath
from small_configs import tiny_frozenlake, tiny_shapes

from tp_jax.messages.errors import UserError
from tp_jax.train.loop import train


def test_shapes_scores_in_training_equal_those_of_tp_jax_evaluate(trained_shapes, tmp_path):
    found = json.loads((trained_shapes / "evaluations" / "00000008.json").read_text())
    folder = trained_shapes / "evaluations" / "00000008"
    assert (folder / "gallery.png").exists()
    arguments = [f"--workdir={trained_shapes}", "--num=6", "--batch_size=4"]
    code, _, errors = run_entry(
        "evaluate", "--suite=shapes", *arguments, f"--out={tmp_path / 'out'}"
    )
    assert code == 0, errors
    wanted = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert found["overall/mean"] == wanted["overall"]["overall"]
    assert found["overall/single_object"] == wanted["overall"]["tags"]["single_object"]
    drawn = {p.parts[-3]: p.read_bytes() for p in (tmp_path / "out/images").glob("*/*/*.png")}
    assert drawn == {p.parts[-3]: p.read_bytes() for p in folder.glob("images/*/*/*.png")}
    assert len(drawn) == 6


@pytest.mark.parametrize(
    ("make", "suite", "changes", "match"),
    [
        (tiny_config, "shapes", {}, "needs a text-conditional model, but this dit model"),
        (tiny_config, "frozenlake", {}, "trained on digits, but this suite needs a model"),
        (tiny_shapes, "adm", {}, "class-conditional model, but this mmdit model"),
        (tiny_frozenlake, "adm", {}, "class-conditional model, but this dit model"),
        (tiny_config, "geneval", {}, "'geneval' can't run during training: score checkpoints"),
        (tiny_config, "dpg", {}, "'dpg' can't run during training"),
        (tiny_config, "fid", {}, "config.evaluation.suite='fid' is unknown: choose one of adm"),
        (tiny_config, "navigation", {}, "this suite is called frozenlake now"),
        (tiny_config, "adm", {"adm.num": 1}, "config.evaluation.adm.num=1: must be 2 or more"),
        (tiny_shapes, "shapes", {"shapes.num": 999}, "shapes.num=999: give 1 to 240, or 0 for all"),
        (
            tiny_frozenlake,
            "frozenlake",
            {"frozenlake.num": 0},
            "frozenlake.num=0: must be 1 or more",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_training(
    make, suite, changes, match, tmp_path
):
    config, workdir = make(), epath.Path(tmp_path) / "run"
    config.evaluation.suite = suite
    for name, value in changes.items():
        section, field = name.split(".")
        config.evaluation[section][field] = value
    with pytest.raises(UserError, match=match):
        train(config, workdir)
    assert not workdir.exists()

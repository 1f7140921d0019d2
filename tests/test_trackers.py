"""Weights & Biases and trackio, with modules in their place that record what they are told."""

import importlib.util
import sys
import types

import numpy as np
import pytest
from conftest import tiny_config
from etils import epath

from tp_jax.messages.errors import UserError
from tp_jax.train.loop import train
from tp_jax.train.trackers import Tracker, Writers, check_writers, open_writers


@pytest.fixture(params=["wandb", "trackio"])
def tracker(request, monkeypatch):
    """A module with the functions that both clients have; `calls` records them."""
    module = types.ModuleType(request.param)
    module.__spec__ = importlib.util.spec_from_loader(request.param, None)
    module.calls = []

    def record(name):
        def call(*args, **kwargs):
            module.calls.append((name, args, kwargs))
            if name in module.failing:
                raise ConnectionError("nobody answers")

        return call

    module.failing = set()
    for name in ("init", "log", "finish", "define_metric"):
        setattr(module, name, record(name))
    module.Settings = dict
    module.Image = lambda array: ("image", array.shape)
    monkeypatch.setitem(sys.modules, request.param, module)
    return module


def config_for(module, **fields):
    config = tiny_config(**fields)
    config.log.writers = (module.__name__,)
    return config


def calls(module, name):
    return [(args, kwargs) for called, args, kwargs in module.calls if called == name]


def test_curves_and_images_have_the_names_of_tensorboard(tracker, tmp_path):
    writer = open_writers(config_for(tracker), epath.Path(tmp_path))
    writer.write_scalars(7, {"loss": 0.5, "expert_use/layer_1/expert_0": 0.25})
    writer.write_images(7, {"samples": np.zeros((4, 6, 1), np.uint8)})
    writer.write_texts(7, {"config": "text"})
    writer.close()
    ((_, started),) = calls(tracker, "init")
    assert started["project"] == "tp_jax" and started["config"]["model.width"] == 16
    (scalars,), (images,) = (args for args, _ in calls(tracker, "log"))
    assert scalars == {"loss": 0.5, "expert_use/layer_1/expert_0": 0.25, "train_step": 7}
    assert images == {"samples": ("image", (4, 6, 3)), "train_step": 7}
    assert len(calls(tracker, "finish")) == 1


def test_a_resumed_run_goes_on_at_the_tracker(tracker, tmp_path):
    names = ("id",) if tracker.__name__ == "wandb" else ("name",)
    for folder in ("a", "a", "b"):
        (tmp_path / folder).mkdir(exist_ok=True)
        Tracker(tracker.__name__, config_for(tracker), epath.Path(tmp_path / folder))
    first, again, other = ([kwargs[name] for name in names] for _, kwargs in calls(tracker, "init"))
    assert first == again != other
    assert all(kwargs["resume"] == "allow" for _, kwargs in calls(tracker, "init"))


@pytest.mark.parametrize("failing", ["init", "log", "finish"])
def test_a_tracker_that_is_down_costs_one_warning(failing, tracker, tmp_path, capsys):
    tracker.failing.add(failing)
    writer = open_writers(config_for(tracker), epath.Path(tmp_path))
    for train_step in range(3):
        writer.write_scalars(train_step, {"loss": 0.5})
    writer.close()
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    name = tracker.__name__
    assert warnings == [f"warning: the run goes on without curves in {name}: nobody answers"]
    assert len(calls(tracker, "log")) == {"init": 0, "log": 1, "finish": 3}[failing]


def test_training_does_not_end_with_its_tracker(tracker, tmp_path, capsys):
    tracker.failing.add("log")
    train(config_for(tracker, steps=2, log_every=1, sample_every=2), epath.Path(tmp_path / "run"))
    assert "goes on without curves" in capsys.readouterr().err
    assert not list((tmp_path / "run").glob("events*"))
    assert (tmp_path / "run" / "checkpoints" / "2").exists()


def test_a_missing_tracker_is_named_before_training(tmp_path):
    config = tiny_config()
    for name in ("wandb", "trackio"):
        if importlib.util.find_spec(name) is None:
            config.log.writers = ("tensorboard", name)
            with pytest.raises(UserError, match=f"{name} isn't installed: pip install {name}, or"):
                check_writers(config)
            with pytest.raises(UserError, match="isn't installed"):
                train(config, epath.Path(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    assert Writers([]).close() is None

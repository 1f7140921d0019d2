"""A run that is stopped and resumed gives the same bits as an uninterrupted one."""

import re

import jax
import numpy as np
import pytest
from etils import epath
from resuming import (
    STEPS,
    USE_FAKE_WRITER,
    RestartableRun,
    assert_identical,
    kill_and_compare,
    read_checkpoint,
    saved_steps,
    small_config,
    trained_losses,
)

from tp_jax.config import build
from tp_jax.messages.errors import TrainingError, UserError
from tp_jax.models import build_model
from tp_jax.models.parameters import abstract_params
from tp_jax.sampling.loaded import load
from tp_jax.train import loop, metrics
from tp_jax.train.optimizer import make_optimizer


def test_resume_after_an_error_gives_the_same_bits(uninterrupted, tmp_path):
    workdir, config = tmp_path / "run", small_config(every_steps=6)
    losses = trained_losses(config, workdir, stop_at=9)
    assert saved_steps(workdir) == {6} and list(losses) == list(range(1, 9))
    again = trained_losses(config, workdir)
    assert list(again) == list(range(7, STEPS + 1))

    wanted, wanted_losses = uninterrupted
    assert losses | again == wanted_losses
    (found, found_data), (wanted, wanted_data) = (
        read_checkpoint(workdir, STEPS),
        read_checkpoint(wanted, STEPS),
    )
    assert_identical(found, wanted)
    assert found_data == wanted_data


def test_gradient_clipping_can_be_enabled_when_resuming():
    # The error for a non-finite loss advises this, so opt_state must keep its structure.
    params = abstract_params(build_model(build(small_config()).model))
    structures = set()
    for clip_norm in (0.0, 1.0):
        config = small_config()
        config.optimizer.clip_norm = clip_norm
        optimizer = make_optimizer(config.optimizer, STEPS)
        structures.add(jax.tree.structure(jax.eval_shape(optimizer.init, params)))
    assert len(structures) == 1


def test_gradient_accumulation_gives_the_same_losses(uninterrupted, tmp_path):
    config = small_config(every_steps=STEPS)
    config.train.accumulate = 2
    losses = trained_losses(config, tmp_path / "run", stop_at=6)
    assert list(losses) == [1, 2, 3, 4, 5]
    for train_step, loss in losses.items():
        np.testing.assert_allclose(loss, uninterrupted[1][train_step], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_offloading_gives_the_same_bits(uninterrupted, tmp_path):
    config = small_config(every_steps=6)
    config.train.offload = True
    losses = trained_losses(config, tmp_path / "run", stop_at=9)
    config.train.samples = 2
    losses |= trained_losses(config, tmp_path / "run")
    assert losses == uninterrupted[1]
    assert_identical(
        read_checkpoint(tmp_path / "run", STEPS)[0], read_checkpoint(uninterrupted[0], STEPS)[0]
    )


def test_a_frozen_base_keeps_its_bits(uninterrupted, tmp_path):
    base, _ = uninterrupted
    config = small_config(steps=4, every_steps=4)
    config.init.base, config.train.trainable = str(base), "thinking"
    trained_losses(config, tmp_path / "run")

    before, (after, _) = read_checkpoint(base, STEPS)[0], read_checkpoint(tmp_path / "run", 4)
    names = [name.removeprefix("base/") for name in before if name.startswith("base/")]
    assert len(names) > 20
    for name in names:
        # The new base is the averaged (EMA) base of the old run.
        assert after[f"base/{name}"].tobytes() == before[f"ema/base/{name}"].tobytes()
    assert any((before[f"base/{name}"] != before[f"ema/base/{name}"]).any() for name in names)
    items = {name.split("/")[0] for name in after if "base" in name.split("/")}
    assert items == {"base"}, "the frozen base must have no average and no optimizer state"
    assert {name.split("/")[1] for name in after if name.startswith("ema/")} == {"thinking"}
    assert any(after[name].any() for name in after if name.endswith("lora_b"))

    # Sampling uses the unchanged base and the average of the trained parameters.
    params = load(epath.Path(tmp_path / "run")).params
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        name = name if name.startswith("base/") else f"ema/{name}"
        assert np.asarray(leaf).tobytes() == after[name].tobytes(), name


@pytest.mark.parametrize("field", ["heads", "image_size"])
def test_a_base_with_other_heads_or_image_size_is_refused_though_shapes_match(
    field, uninterrupted, tmp_path
):
    config = small_config()
    config.init.base = str(uninterrupted[0])
    config.model[field] *= 2
    config.data.source = "synthetic"
    match = f"{field}=[28], but config.model.{field}={config.model[field]}: set it to"
    with pytest.raises(UserError, match=match):
        loop.train(config, epath.Path(tmp_path) / "run")
    assert not (tmp_path / "run").exists()


# Processes that are killed. A config file is Python, so a test can add lines that patch the run.
NAN_DATA = f"{USE_FAKE_WRITER}\nresuming.make_batch_nan(step=5)"


@pytest.mark.slow
def test_resume_after_ten_sigkills_gives_the_same_bits(tmp_path):
    trained_losses(small_config(steps=40, every_steps=40), tmp_path / "uninterrupted")
    run = RestartableRun(tmp_path, steps=40, lines="")
    kill_and_compare(run, tmp_path / "uninterrupted", 40, kills=10)


# Losses that are not finite.


@pytest.mark.parametrize(("loss", "norm"), [(np.nan, 1.0), (np.inf, 1.0), (1.0, np.nan)])
def test_the_first_train_step_with_a_non_finite_loss_is_named(loss, norm):
    window = metrics.Window(1.0, 8, 0.0)
    window.add(6, {"loss": np.float32(1), "grad_norm": np.float32(1)})
    window.add(7, {"loss": np.float32(loss), "grad_norm": np.float32(norm)})
    window.add(8, {"loss": np.float32(np.nan), "grad_norm": np.float32(np.nan)})
    match = f"train_step 7: loss {loss}, gradient norm {norm}: not finite.*learning_rate"
    for method in (window.check_finite, window.close):
        with pytest.raises(TrainingError, match=match):
            method()


def test_a_nan_loss_ends_training_with_one_line_and_keeps_checkpoints(tmp_path):
    run = RestartableRun(tmp_path, lines=NAN_DATA)
    code, log = run.finish()
    assert code == 1, log
    lines = [line for line in log.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and "Traceback" not in log, log
    assert re.match(r"error: train_step 5: loss nan.*last checkpoint.*learning_rate", lines[0])
    # The save of step 4 was still running when the loss of step 5 was found to be NaN.
    assert saved_steps(run.workdir) == {2, 4} and run.unfinished_checkpoint() is None
    arrays, _ = read_checkpoint(run.workdir, 4)
    assert all(np.isfinite(array).all() for array in arrays.values())
    assert load(epath.Path(run.workdir)).train_step == 4

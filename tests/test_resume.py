"""A run that was stopped goes on as if it had not been: bit for bit, whatever stopped it."""

import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath
from jax.experimental.compilation_cache import compilation_cache
from ml_collections import ConfigDict

from tp_jax.config import build, default
from tp_jax.messages.errors import TrainingError, UserError
from tp_jax.models import build_model
from tp_jax.models.parameters import abstract_params
from tp_jax.sampling.loaded import load
from tp_jax.train import loop, metrics
from tp_jax.train.optimizer import make_optimizer

TESTS = pathlib.Path(__file__).parent
STEPS = 14


def small_config(steps: int = STEPS, every_steps: int = 2) -> ConfigDict:
    """Everything that has a memory is on: EMA, moments, schedule, shuffling and all the noise."""
    config = default("dit", "flow")
    config.model.update(
        image_size=8, channels=1, num_classes=10, patch=4, depth=1, width=8, heads=2
    )
    config.model.thinking.update(layers=(0,), rank=2, gate_width=4)
    config.data.flip = True
    config.train.update(steps=steps, batch_size=8, ema_decay=0.9, log_every=1, samples=0)
    config.optimizer.update(
        learning_rate=1e-2, schedule="cosine", warmup_steps=3, weight_decay=0.1, clip_norm=0.5
    )
    config.checkpoint.every_steps = every_steps
    config.sampling.update(sampler="euler", steps=2)
    return config


class Curves:
    """Stands in for the TensorBoard writer, whose TensorFlow takes long to import."""

    def __init__(self):
        self.scalars = {}

    def write_scalars(self, train_step, scalars):
        self.scalars[train_step] = scalars

    def write_images(self, train_step, images):
        pass

    def flush(self):
        pass


def stored(workdir, train_step):
    """Every array of a checkpoint as {"item/a/b": array}, read without our code; and its data."""
    arrays, folder = {}, epath.Path(workdir) / "checkpoints" / str(train_step)
    for item in ("base", "thinking", "ema", "opt_state"):
        with ocp.PyTreeCheckpointer() as checkpointer:
            tree = checkpointer.metadata(folder / item).item_metadata.tree
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
            found = checkpointer.restore(folder / item, restore_args=as_numpy)
        for path, leaf in jax.tree_util.tree_flatten_with_path(found)[0]:
            arrays[f"{item}/{jax.tree_util.keystr(path, simple=True, separator='/')}"] = leaf
    return arrays, json.loads((folder / "progress" / "metadata").read_text())["data"]


def assert_identical(a, b):
    assert a.keys() == b.keys() and len(a) > 60
    different = [name for name in a if a[name].tobytes() != b[name].tobytes()]
    assert not different


def steps_kept(workdir):
    """The whole checkpoints; those being written have longer names."""
    with contextlib.suppress(FileNotFoundError):
        return {int(name) for name in os.listdir(workdir / "checkpoints") if name.isdigit()}
    return set()


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """Programs that this file compiles, for its own runs and for the processes that it starts."""
    folder = tmp_path_factory.mktemp("cache")
    settings = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield {name.upper(): str(value) for name, value in settings.items()}
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def trained_losses(config, workdir, stop_at=None):
    """Trains in this process, where asked until an error at that step; the loss of each step."""
    curves = Curves()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "open_writer", lambda workdir: curves)
        if stop_at is None:
            loop.train(config, epath.Path(workdir))
        else:
            add = metrics.Window.add

            def stop(window, train_step, values):
                if train_step == stop_at:
                    raise InterruptedError
                add(window, train_step, values)

            patch.setattr(metrics.Window, "add", stop)
            with pytest.raises(InterruptedError):
                loop.train(config, epath.Path(workdir))
    return {step: scalars["loss"] for step, scalars in curves.scalars.items()}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, cache):
    """A workdir that was trained in one go, and its losses. Read it only."""
    workdir = tmp_path_factory.mktemp("uninterrupted") / "run"
    losses = trained_losses(small_config(every_steps=STEPS), workdir)
    assert list(losses) == list(range(1, STEPS + 1))
    return workdir, losses


def test_stopped_by_an_error_it_goes_on_identically(uninterrupted, tmp_path):
    workdir, config = tmp_path / "run", small_config(every_steps=6)
    losses = trained_losses(config, workdir, stop_at=9)
    assert steps_kept(workdir) == {6} and list(losses) == list(range(1, 9))
    again = trained_losses(config, workdir)
    assert list(again) == list(range(7, STEPS + 1))

    wanted, wanted_losses = uninterrupted
    assert losses | again == wanted_losses
    (found, found_data), (wanted, wanted_data) = stored(workdir, STEPS), stored(wanted, STEPS)
    assert_identical(found, wanted)
    assert found_data == wanted_data


def test_clipping_may_be_turned_on_on_the_way():
    # As the message of a non-finite loss advises.
    params = abstract_params(build_model(build(small_config()).model))
    structures = set()
    for clip_norm in (0.0, 1.0):
        config = small_config()
        config.optimizer.clip_norm = clip_norm
        optimizer = make_optimizer(config.optimizer, STEPS)
        structures.add(jax.tree.structure(jax.eval_shape(optimizer.init, params)))
    assert len(structures) == 1


def test_accumulating_gives_the_same_losses(uninterrupted, tmp_path):
    config = small_config(every_steps=STEPS)
    config.train.accumulate = 2
    losses = trained_losses(config, tmp_path / "run", stop_at=6)
    assert list(losses) == [1, 2, 3, 4, 5]
    for train_step, loss in losses.items():
        np.testing.assert_allclose(loss, uninterrupted[1][train_step], rtol=0, atol=1e-5)


def test_offloaded_it_is_the_same_run(uninterrupted, tmp_path):
    config = small_config(every_steps=6)
    config.train.offload = True
    losses = trained_losses(config, tmp_path / "run", stop_at=9)
    config.train.samples = 2
    losses |= trained_losses(config, tmp_path / "run")
    assert losses == uninterrupted[1]
    assert_identical(stored(tmp_path / "run", STEPS)[0], stored(uninterrupted[0], STEPS)[0])


def test_a_base_stays_as_it_was(uninterrupted, tmp_path):
    base, _ = uninterrupted
    config = small_config(steps=4, every_steps=4)
    config.init.base, config.train.trainable = str(base), "thinking"
    trained_losses(config, tmp_path / "run")

    before, (after, _) = stored(base, STEPS)[0], stored(tmp_path / "run", 4)
    names = [name.removeprefix("base/") for name in before if name.startswith("base/")]
    assert len(names) > 20
    for name in names:
        # What becomes the base is the average.
        assert after[f"base/{name}"].tobytes() == before[f"ema/base/{name}"].tobytes()
    assert any((before[f"base/{name}"] != before[f"ema/base/{name}"]).any() for name in names)
    kept = {name.split("/")[0] for name in after if "base" in name.split("/")}
    assert kept == {"base"}, "neither an average nor an optimizer state of the base"
    assert {name.split("/")[1] for name in after if name.startswith("ema/")} == {"thinking"}
    assert any(after[name].any() for name in after if name.endswith("lora_b"))

    # What is sampled is the same base with the average of what was trained.
    params = load(epath.Path(tmp_path / "run")).params
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        name = name if name.startswith("base/") else f"ema/{name}"
        assert np.asarray(leaf).tobytes() == after[name].tobytes(), name


@pytest.mark.parametrize("field", ["heads", "image_size"])
def test_a_base_of_other_heads_or_size_is_refused_though_its_shapes_fit(
    field, uninterrupted, tmp_path
):
    config = small_config()
    config.init.base = str(uninterrupted[0])
    config.model[field] *= 2
    config.data.source = "synthetic"
    match = f"{field}=[28], but config.model.{field}={config.model[field]}: set it so"
    with pytest.raises(UserError, match=match):
        loop.train(config, epath.Path(tmp_path) / "run")
    assert not (tmp_path / "run").exists()


# Processes that are killed. A config file is Python, so a test can put lines into their start.

WITHOUT_CURVES = "test_resume.metrics.open_writer = lambda workdir: test_resume.Curves()"
SPOILT = f"{WITHOUT_CURVES}\ntest_resume.spoil_data(step=5)"


def spoil_data(step):
    """Makes the batch of that step, counted from the start of the process, NaN."""
    to_devices, seen = loop._to_devices, []

    def spoilt(batch, mesh):
        seen.append(batch)
        return to_devices(batch | {"x": batch["x"] * np.nan} if len(seen) == step else batch, mesh)

    loop._to_devices = spoilt


class Processes:
    """Starts one run again and again, as a person would."""

    def __init__(self, folder, cache, *, steps=STEPS, lines=WITHOUT_CURVES):
        self.workdir, self._folder, self._log = folder / "run", folder, folder / "log"
        search = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
        self._environment = os.environ | cache | {"PYTHONPATH": search}
        self.write_config(steps, lines)

    def write_config(self, steps, lines):
        """The config of the next starts, after lines that change the program."""
        (self._folder / "config.py").write_text(
            f"import test_resume\n\n{lines}\n\n"
            f"def get_config():\n    return test_resume.small_config(steps={steps})\n"
        )

    def start(self, *flags, stderr=None):
        """Starts a process in the folder, so that the workdir is named by a relative path."""
        command = [sys.executable, "-m", "tp_jax.main", "--config=config.py", "--workdir=run"]
        with self._log.open("w") as log:
            return subprocess.Popen(
                [*command, *flags], cwd=self._folder, env=self._environment, stderr=stderr or log
            )

    def finish(self, *flags, through_pipe=False):
        """Runs to the end; its exit code and what it said."""
        process = self.start(*flags, stderr=subprocess.PIPE if through_pipe else None)
        try:
            said = process.communicate(timeout=300)[1]
            return process.returncode, said.decode() if through_pipe else self.said()
        finally:
            process.kill()

    def said(self):
        return self._log.read_text()

    def being_saved(self):
        """The checkpoint being written now, if one is."""
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(self.workdir / "checkpoints"):
                if not name.isdigit():
                    return name
        return None

    def kill(self, after, *, saving, delay):
        """Starts, kills after that many new checkpoints and a delay, or while saving the next.

        Returns:
          Whether it was alive till then, and whether a checkpoint was left half written.
        """
        process, before = self.start(), steps_kept(self.workdir)
        newest = max(before, default=0)

        def wait_for(event):
            deadline = time.monotonic() + 300
            while not event() and process.poll() is None:
                assert time.monotonic() < deadline, self.said()
                time.sleep(0.0005)

        try:
            reached = newest + 2 * after
            wait_for(lambda: max(steps_kept(self.workdir), default=0) >= reached)
            if saving:
                # What the last kill left half written is cleared away before anything is saved.
                wait_for(lambda: "compiling" in self.said() and self.being_saved())
            time.sleep(delay)
        finally:
            os.kill(process.pid, signal.SIGKILL)
        return process.wait() == -signal.SIGKILL, bool(self.being_saved())


def kill_and_compare(processes, uninterrupted, steps, kills):
    """Kills one run that many times, and compares its end with a run that never was."""
    rng, hits, halves = np.random.default_rng(0), 0, 0
    for number in range(kills):
        saving = number % 2 == 0
        delay = rng.uniform(0, 0.02 if saving else 0.5)
        # A new checkpoint shows that it trains, and not what the last kill left half written.
        after = int(rng.integers(0, 2)) if saving else int(rng.integers(1, 3))
        for _ in range(3):
            # A save may end before the kill comes; that is tried again.
            hit, half = processes.kill(after, saving=saving, delay=delay)
            assert hit, processes.said()
            hits, halves, delay = hits + 1, halves + half, 0
            if half or not saving:
                break
        json.loads((processes.workdir / "config.json").read_text())
    assert halves >= (kills + 1) // 2, "too few kills hit a save"

    code, said = processes.finish()
    assert code == 0, said
    assert "going on from checkpoint" in said or kills == 1
    (found, found_data), (wanted, wanted_data) = (
        stored(folder, steps) for folder in (processes.workdir, uninterrupted)
    )
    assert_identical(found, wanted)
    assert found_data == wanted_data
    assert processes.being_saved() is None
    print(f"\n{hits} kills hit, {halves} of them in the middle of a save")


def test_killed_it_goes_on_identically(uninterrupted, tmp_path, cache):
    kill_and_compare(Processes(tmp_path, cache), uninterrupted[0], STEPS, kills=2)


@pytest.mark.slow
def test_killed_ten_times_it_goes_on_identically(tmp_path, cache):
    trained_losses(small_config(steps=40, every_steps=40), tmp_path / "uninterrupted")
    processes = Processes(tmp_path, cache, steps=40, lines="")
    kill_and_compare(processes, tmp_path / "uninterrupted", 40, kills=10)


# Losses that aren't finite.


@pytest.mark.parametrize(("loss", "norm"), [(np.nan, 1.0), (np.inf, 1.0), (1.0, np.nan)])
def test_a_loss_that_is_not_finite_is_named(loss, norm):
    window = metrics.Window(1.0, 8, 0.0)
    window.add(6, {"loss": np.float32(1), "grad_norm": np.float32(1)})
    window.add(7, {"loss": np.float32(loss), "grad_norm": np.float32(norm)})
    window.add(8, {"loss": np.float32(np.nan), "grad_norm": np.float32(np.nan)})
    match = f"train_step 7: loss {loss}, gradient norm {norm}: not finite.*learning_rate"
    for ask in (window.check_finite, window.close):
        with pytest.raises(TrainingError, match=match):
            ask()


def test_training_that_goes_wrong_ends_with_one_line_and_keeps_its_checkpoints(tmp_path, cache):
    processes = Processes(tmp_path, cache, lines=SPOILT)
    code, said = processes.finish()
    assert code == 1, said
    lines = [line for line in said.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and "Traceback" not in said, said
    assert re.match(r"error: train_step 5: loss nan.*last checkpoint.*learning_rate", lines[0])
    # The last save was under way when the loss after it was found not to be finite.
    assert steps_kept(processes.workdir) == {2, 4} and processes.being_saved() is None
    arrays, _ = stored(processes.workdir, 4)
    assert all(np.isfinite(array).all() for array in arrays.values())
    assert load(epath.Path(processes.workdir)).train_step == 4

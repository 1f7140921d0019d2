"""What tests of runs that are stopped and go on share: a small run, and processes to be killed."""

import contextlib
import json
import os
import pathlib
import resource
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath
from ml_collections import ConfigDict

from tp_jax.config import default
from tp_jax.train import loop, metrics

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


class FakeWriter:
    """Stands in for the TensorBoard writer, whose TensorFlow takes long to import."""

    def __init__(self):
        self.scalars = {}

    def write_scalars(self, train_step, scalars):
        self.scalars[train_step] = scalars

    def write_images(self, train_step, images):
        pass

    def flush(self):
        pass


def read_checkpoint(workdir, train_step):
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


def saved_steps(workdir):
    """The whole checkpoints; those being written have longer names."""
    with contextlib.suppress(FileNotFoundError):
        return {int(name) for name in os.listdir(workdir / "checkpoints") if name.isdigit()}
    return set()


def trained_losses(config, workdir, stop_at=None):
    """Trains in this process, where asked until an error at that step; the loss of each step."""
    curves = FakeWriter()
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


USE_FAKE_WRITER = "resuming.metrics.open_writer = lambda workdir: resuming.FakeWriter()"


def make_batch_nan(step):
    """Makes the batch of that step, counted from the start of the process, NaN."""
    to_devices, seen = loop._to_devices, []

    def spoilt(batch, mesh):
        seen.append(batch)
        return to_devices(batch | {"x": batch["x"] * np.nan} if len(seen) == step else batch, mesh)

    loop._to_devices = spoilt


class RestartableRun:
    """Starts one run again and again, as a person would."""

    def __init__(self, folder, cache, *, steps=STEPS, lines=USE_FAKE_WRITER):
        self.workdir, self._folder, self._log_file = folder / "run", folder, folder / "log"
        search = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
        self._environment = os.environ | cache | {"PYTHONPATH": search}
        self.write_config(steps, lines)

    def write_config(self, steps, lines):
        """The config of the next starts, after lines that change the program."""
        (self._folder / "config.py").write_text(
            f"import resuming\n\n{lines}\n\n"
            f"def get_config():\n    return resuming.small_config(steps={steps})\n"
        )

    def start(self, *flags, stderr=None):
        """Starts a process in the folder, so that the workdir is named by a relative path."""
        command = [sys.executable, "-m", "tp_jax.main", "--config=config.py", "--workdir=run"]
        with self._log_file.open("w") as log:
            return subprocess.Popen(
                [*command, *flags], cwd=self._folder, env=self._environment, stderr=stderr or log
            )

    def finish(self, *flags, through_pipe=False):
        """Runs to the end; its exit code and what it said."""
        process = self.start(*flags, stderr=subprocess.PIPE if through_pipe else None)
        try:
            said = process.communicate(timeout=300)[1]
            return process.returncode, said.decode() if through_pipe else self.log()
        finally:
            process.kill()

    def log(self):
        return self._log_file.read_text()

    def unfinished_checkpoint(self):
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
        process, before = self.start(), saved_steps(self.workdir)
        newest = max(before, default=0)

        def wait_for(event):
            deadline = time.monotonic() + 300
            while not event() and process.poll() is None:
                assert time.monotonic() < deadline, self.log()
                time.sleep(0.0005)

        try:
            reached = newest + 2 * after
            wait_for(lambda: max(saved_steps(self.workdir), default=0) >= reached)
            if saving:
                # What the last kill left half written is cleared away before anything is saved.
                wait_for(lambda: "compiling" in self.log() and self.unfinished_checkpoint())
            time.sleep(delay)
        finally:
            os.kill(process.pid, signal.SIGKILL)
        return process.wait() == -signal.SIGKILL, bool(self.unfinished_checkpoint())


def kill_and_compare(run, uninterrupted, steps, kills):
    """Kills one run that many times, and compares its end with a run that never was."""
    rng, hits, halves = np.random.default_rng(0), 0, 0
    for number in range(kills):
        saving = number % 2 == 0
        delay = rng.uniform(0, 0.02 if saving else 0.5)
        # A new checkpoint shows that it trains, and not what the last kill left half written.
        after = int(rng.integers(0, 2)) if saving else int(rng.integers(1, 3))
        for _ in range(3):
            # A save may end before the kill comes; that is tried again.
            hit, half = run.kill(after, saving=saving, delay=delay)
            assert hit, run.log()
            hits, halves, delay = hits + 1, halves + half, 0
            if half or not saving:
                break
        json.loads((run.workdir / "config.json").read_text())
    assert halves >= (kills + 1) // 2, "too few kills hit a save"

    code, said = run.finish()
    assert code == 0, said
    assert "going on from checkpoint" in said or kills == 1
    (found, found_data), (wanted, wanted_data) = (
        read_checkpoint(folder, steps) for folder in (run.workdir, uninterrupted)
    )
    assert_identical(found, wanted)
    assert found_data == wanted_data
    assert run.unfinished_checkpoint() is None
    print(f"\n{hits} kills hit, {halves} of them in the middle of a save")


def slow_down(seconds):
    """Makes every step take longer, so that a signal comes between two of them."""
    to_devices = loop._to_devices

    def slower(*args):
        time.sleep(seconds)
        return to_devices(*args)

    loop._to_devices = slower


def fill_disk(step):
    """From that step on no file can grow beyond a few bytes, as on a full disk."""
    to_devices, seen = loop._to_devices, []

    def full(*args):
        seen.append(0)
        time.sleep(0.2)  # So that the save before is written.
        if len(seen) == step:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (64, resource.RLIM_INFINITY))
        return to_devices(*args)

    loop._to_devices = full

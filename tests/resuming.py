"""Helpers for tests of resuming: a small config, reading checkpoints, and runs that are killed."""

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
    """A config that uses all state that a checkpoint must restore.

    These are the EMA, optimizer moments, learning-rate schedule, data order and all noise.
    """
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
    """Replaces the TensorBoard writer; stores the scalars."""

    def __init__(self):
        self.scalars = {}

    def write_scalars(self, train_step, scalars):
        self.scalars[train_step] = scalars

    def write_images(self, train_step, images):
        pass

    def write_texts(self, train_step, texts):
        pass

    def close(self):
        pass


def read_checkpoint(workdir, train_step):
    """Read a checkpoint without code of this package.

    Returns:
      Its arrays as {"item/a/b": array}, and the state of the data iterator.
    """
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
    """Steps of the complete checkpoints. Checkpoints that are being written have other names."""
    with contextlib.suppress(FileNotFoundError):
        return {int(name) for name in os.listdir(workdir / "checkpoints") if name.isdigit()}
    return set()


def trained_losses(config, workdir, stop_at=None):
    """Train in this process, with an error at step `stop_at` if given; return the loss by step."""
    curves = FakeWriter()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "TensorBoardWriter", lambda workdir: curves)
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


USE_FAKE_WRITER = "resuming.metrics.TensorBoardWriter = lambda workdir: resuming.FakeWriter()"


def make_batch_nan(step):
    """Make the batch of this step NaN; steps count from the start of the process."""
    to_devices, seen = loop.to_devices, []

    def with_nan(batch, mesh):
        seen.append(batch)
        return to_devices(batch | {"x": batch["x"] * np.nan} if len(seen) == step else batch, mesh)

    loop.to_devices = with_nan


class RestartableRun:
    """A training run in processes of its own, which can be killed and started again."""

    def __init__(self, folder, *, steps=STEPS, lines=USE_FAKE_WRITER):
        self.workdir, self._folder, self._log_file = folder / "run", folder, folder / "log"
        search = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
        self._environment = os.environ | {"PYTHONPATH": search}
        self.write_config(steps, lines)

    def write_config(self, steps, lines):
        """Write the config for the next starts; its `lines` may change the program."""
        (self._folder / "config.py").write_text(
            f"import resuming\n\n{lines}\n\n"
            f"def get_config():\n    return resuming.small_config(steps={steps})\n"
        )

    def start(self, *flags, stderr=None):
        """Start a process in the folder, with a relative path as workdir."""
        command = [sys.executable, "-m", "tp_jax.main", "--config=config.py", "--workdir=run"]
        with self._log_file.open("w") as log:
            return subprocess.Popen(
                [*command, *flags], cwd=self._folder, env=self._environment, stderr=stderr or log
            )

    def finish(self, *flags, through_pipe=False):
        """Run to the end; return the exit code and the log."""
        process = self.start(*flags, stderr=subprocess.PIPE if through_pipe else None)
        try:
            stderr = process.communicate(timeout=300)[1]
            return process.returncode, stderr.decode() if through_pipe else self.log()
        finally:
            process.kill()

    def log(self):
        """The stderr of the last process so far."""
        return self._log_file.read_text()

    def unfinished_checkpoint(self):
        """The name of a checkpoint that is incomplete, or None."""
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(self.workdir / "checkpoints"):
                if not name.isdigit():
                    return name
        return None

    def kill(self, after, *, saving, delay):
        """Start a process; kill it after `after` new checkpoints, or if `saving` in the next save.

        Returns:
          Whether the process was alive until then, and whether it left an incomplete checkpoint.
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
                # Before it logs "compiling", it deletes incomplete checkpoints of the last process.
                wait_for(lambda: "compiling" in self.log() and self.unfinished_checkpoint())
            time.sleep(delay)
        finally:
            os.kill(process.pid, signal.SIGKILL)
        return process.wait() == -signal.SIGKILL, bool(self.unfinished_checkpoint())


def kill_and_compare(run, uninterrupted, steps, kills):
    """Kill a run `kills` times, let it finish, and compare it with an uninterrupted run."""
    rng, hits, halves = np.random.default_rng(0), 0, 0
    for number in range(kills):
        saving = number % 2 == 0
        delay = rng.uniform(0, 0.02 if saving else 0.5)
        # Only after a new checkpoint is it certain that the process trains.
        after = int(rng.integers(0, 2)) if saving else int(rng.integers(1, 3))
        for _ in range(3):
            # Try again if the save ended before the kill.
            hit, half = run.kill(after, saving=saving, delay=delay)
            assert hit, run.log()
            hits, halves, delay = hits + 1, halves + half, 0
            if half or not saving:
                break
        json.loads((run.workdir / "config.json").read_text())
    assert halves >= (kills + 1) // 2, "too few kills hit a save"

    code, log = run.finish()
    assert code == 0, log
    assert "resuming from the checkpoint of train step" in log or kills == 1
    (found, found_data), (wanted, wanted_data) = (
        read_checkpoint(folder, steps) for folder in (run.workdir, uninterrupted)
    )
    assert_identical(found, wanted)
    assert found_data == wanted_data
    assert run.unfinished_checkpoint() is None
    print(f"\n{hits} kills, {halves} of them during a save")


def slow_down(seconds):
    """Make every train step slower, so that a signal arrives between two steps."""
    to_devices = loop.to_devices

    def slower(*args):
        time.sleep(seconds)
        return to_devices(*args)

    loop.to_devices = slower


def fill_disk(step):
    """Limit the size of files from this step on, as if the disk was full."""
    to_devices, seen = loop.to_devices, []

    def full(*args):
        seen.append(0)
        time.sleep(0.2)  # let the previous save finish
        if len(seen) == step:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (64, resource.RLIM_INFINITY))
        return to_devices(*args)

    loop.to_devices = full

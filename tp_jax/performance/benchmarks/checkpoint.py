"""Checkpoints: saving and restoring, and how long training waits for them."""

import contextlib
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from tp_jax.parallel.sharding import with_shardings
from tp_jax.performance.contenders import Training, changed, prepare_training
from tp_jax.performance.measure import Contender, Group, SelfTimed
from tp_jax.performance.options import BenchOptions
from tp_jax.train.checkpoint import Checkpoints, Progress

STEP, STARTED, WRITTEN = "train step", "save, until training goes on", "save, until it is written"
RESTORED, TRAINING = "restore", "train steps around a save"


def groups(options: BenchOptions) -> Iterator[Group]:
    """Yield one group with the checkpoints of a config's training state."""
    config = changed(options.config, options.config.train.trainable)
    shared = _Shared(config)

    def contender(name: str, seconds: Callable[[], float], **fields: Any) -> Contender:
        def prepare() -> SelfTimed:
            shared.open()
            return SelfTimed(seconds, shared.close)

        return Contender(name, prepare, **fields)

    def waiting(times: Mapping[str, Sequence[float]]) -> dict[str, Any]:
        step = sorted(times[STEP])[len(times[STEP]) // 2]
        around = sorted(times[TRAINING])[len(times[TRAINING]) // 2]
        extra, every = max(0.0, around - shared.steps_around * step), config.checkpoint.every_steps
        return {"waiting_share": extra / (every * step + extra), "steps": shared.steps_around}

    yield Group(
        "checkpoints",
        (
            contender(STEP, shared.step),
            contender(STARTED, shared.start_save),
            contender(WRITTEN, shared.save),
            contender(RESTORED, shared.restore),
            contender(TRAINING, shared.train_around_save, derive=waiting),
        ),
    )


class _Shared:
    """The training state that all contenders of the group use, and a folder for checkpoints."""

    def __init__(self, config: ConfigDict) -> None:
        self._config, self.steps_around, self._users = config, 0, 0
        self._training: Training | None = None
        self._folder: epath.Path | None = None

    def open(self) -> None:
        if not self._users:
            self._training = prepare_training(self._config)
            self._folder = epath.Path(tempfile.mkdtemp(prefix="tp_jax_bench_"))
        self._users += 1

    def close(self) -> None:
        self._users -= 1
        if not self._users:
            shutil.rmtree(str(self._folder), ignore_errors=True)
            self._training = self._folder = None

    def _opened(self) -> Training:
        if self._training is None:
            raise RuntimeError("the training state is closed")
        return self._training

    @contextlib.contextmanager
    def _checkpoints(self) -> Iterator[Checkpoints]:
        """Yield an empty folder of checkpoints; on exit, wait until they are written."""
        folder = epath.Path(tempfile.mkdtemp(dir=self._folder))
        with Checkpoints(folder, self._config.checkpoint) as checkpoints:
            yield checkpoints
        shutil.rmtree(str(folder))

    def step(self) -> float:
        """Return the seconds of one train step."""
        started = time.perf_counter()
        jax.block_until_ready(self._opened().call())
        return time.perf_counter() - started

    def start_save(self) -> float:
        """Return the seconds until the next train step could start."""
        with self._checkpoints() as checkpoints:
            started = time.perf_counter()
            checkpoints.save(self._opened().state, Progress({}, 0.0))
            return time.perf_counter() - started

    def save(self) -> float:
        """Return the seconds until a checkpoint and its checksums are written."""
        with self._checkpoints() as checkpoints:
            started = time.perf_counter()
            checkpoints.save(self._opened().state, Progress({}, 0.0))
            checkpoints.close()
            seconds = time.perf_counter() - started
        self.steps_around = self.steps_around or math.ceil(2 * seconds / self.step())
        return seconds

    def restore(self) -> float:
        """Return the seconds of checking the newest checkpoint, and restoring it."""
        program = self._opened().program
        target = with_shardings(program.abstract, program.shardings)
        folder = epath.Path(tempfile.mkdtemp(dir=self._folder))
        with Checkpoints(folder, self._config.checkpoint) as checkpoints:
            checkpoints.save(self._opened().state, Progress({}, 0.0))
        with Checkpoints(folder, self._config.checkpoint) as checkpoints:
            started = time.perf_counter()
            jax.block_until_ready(checkpoints.restore_newest(target))
            seconds = time.perf_counter() - started
        shutil.rmtree(str(folder))
        return seconds

    def train_around_save(self) -> float:
        """Return the seconds of so many steps that a save during them is written before they end.

        What is left to write after the last step counts as well.
        """
        with self._checkpoints() as checkpoints:
            started = time.perf_counter()
            checkpoints.save(self._opened().state, Progress({}, 0.0))
            for _ in range(self.steps_around):
                self.step()
            checkpoints.close()
            return time.perf_counter() - started

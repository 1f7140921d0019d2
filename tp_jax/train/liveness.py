"""What ends or stops a run from outside: a machine that is taken away, a step that hangs."""

import contextlib
import faulthandler
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any, Self

import jax
from jax.experimental import multihost_utils


class Preemption:
    """Whether SIGTERM has asked the run to stop; a context, to be asked after every step.

    With several processes jax.distributed hears the signal, on whichever process it comes, and
    lets all of them stop after the same step.
    """

    def __init__(self) -> None:
        self._asked = False
        # What `signal.signal` gave back.
        self._before: Any = None

    def __enter__(self) -> Self:
        alone = jax.process_count() == 1
        if alone and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._hear)
        return self

    def __exit__(self, *error: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def is_due(self, train_step: int) -> bool:
        """Whether to save and stop after this step."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(train_step)
        return self._asked


class Watchdog:
    """Says so when a step takes too long, with the stack of every thread; a context.

    A dead peer, or storage that doesn't answer, can't be mended from inside, so the run isn't
    ended.
    """

    def __init__(self, seconds: float) -> None:
        """`seconds` without a step are a hang; 0 never looks."""
        self._seconds, self._last, self._step = seconds, time.monotonic(), 0
        self._paused, self._ended = False, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        if self._seconds:
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def beat(self, train_step: int) -> None:
        """A step was taken."""
        self._last, self._step = time.monotonic(), train_step

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Doesn't look while something long, with a progress bar of its own, goes on."""
        self._paused = True
        try:
            yield
        finally:
            self._last, self._paused = time.monotonic(), False

    def _watch(self) -> None:
        while not self._ended.wait(min(self._seconds / 4, 10.0)):
            silent = time.monotonic() - self._last
            if self._paused or silent < self._seconds:
                continue
            print(
                f"warning: process {jax.process_index()} has taken no step for {silent:.0f} s, the "
                f"last was {self._step}; where every thread is:",
                file=sys.stderr,
                flush=True,
            )
            faulthandler.dump_traceback(sys.stderr, all_threads=True)
            # Said again only after as long a time.
            self._last = time.monotonic()

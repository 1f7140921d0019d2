"""Handling of preemption (SIGTERM) and of train steps that hang."""

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
    """Records whether SIGTERM was received; a context manager around the training loop.

    With several processes, `jax.distributed` receives the signal on any of them and makes all of
    them stop after the same train step.
    """

    def __init__(self) -> None:
        self._received = False
        # The handler before this one, as `signal.signal` returns it.
        self._previous: Any = None

    def __enter__(self) -> Self:
        single_process = jax.process_count() == 1
        # Python sets signal handlers only in the main thread.
        if single_process and threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._received = True

    def should_stop(self, train_step: int) -> bool:
        """Return whether to save and stop after this train step. Call it after every step."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(train_step)
        return self._received


class Watchdog:
    """Warns when a train step takes too long, and prints the stack of every thread.

    A context manager around the training loop. It only reports: the cause, such as a dead process
    or storage that doesn't respond, is outside this process, and the step may still finish.
    """

    def __init__(self, seconds: float) -> None:
        """Warn after `seconds` without a step; 0 disables the watchdog."""
        self._seconds, self._last, self._step = seconds, time.monotonic(), 0
        self._paused, self._stopped = False, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        if self._seconds:
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def beat(self, train_step: int) -> None:
        """Record that a train step was run."""
        self._last, self._step = time.monotonic(), train_step

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Don't warn during the block, for long actions that have a progress bar of their own."""
        self._paused = True
        try:
            yield
        finally:
            self._last, self._paused = time.monotonic(), False

    def _watch(self) -> None:
        while not self._stopped.wait(min(self._seconds / 4, 10.0)):
            silent = time.monotonic() - self._last
            if self._paused or silent < self._seconds:
                continue
            print(
                f"warning: process {jax.process_index()} has run no train step for {silent:.0f} s; "
                f"the last was step {self._step}. Stack of every thread:",
                file=sys.stderr,
                flush=True,
            )
            faulthandler.dump_traceback(sys.stderr, all_threads=True)
            # Warn again only after another `seconds`.
            self._last = time.monotonic()

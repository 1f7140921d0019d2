"""Handling of signals that stop training, and of train steps that hang."""

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Self

import jax
from jax.experimental import multihost_utils

from tp_jax.cli import signals


class Preemption:
    """Records whether a signal asked to stop; a context manager around the training loop.

    SIGINT and SIGHUP before the end of the first train step end a command at once, because there is
    nothing to save; in another program, such as a notebook, they do what they always do there.
    With several processes, `jax.distributed` receives SIGTERM on any of them and makes all of them
    stop after the same train step; the other signals are passed on as SIGTERM.

    Attributes:
      received: number of the first signal, or None. With several processes, SIGTERM isn't seen
        here.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._single, self._has_run = jax.process_count() == 1, False
        self._entered = contextlib.ExitStack()

    def __enter__(self) -> Self:
        if signals.are_handled():
            self._handle()
        return self

    def _handle(self) -> None:
        # Only jax.distributed may handle SIGTERM, if it does.
        numbers = [n for n in signals.NUMBERS if self._single or n != signal.SIGTERM]
        self._entered.enter_context(signals.received_by(self._receive, tuple(numbers)))

    def __exit__(self, *error: object) -> None:
        self._entered.close()

    def _receive(self, number: int) -> None:
        if self._single and not self._has_run and number != signal.SIGTERM:
            signals.end(number)
        if self.received is None:
            self.received = number
            name = signal.Signals(number).name
            signals.print_line(f"{name}: saving a checkpoint; Ctrl-C ends at once, without saving")
        if not self._single and number != signal.SIGTERM:
            os.kill(os.getpid(), signal.SIGTERM)

    def should_stop(self, train_step: int) -> bool:
        """Return whether to save and stop after this train step. Call it after every step."""
        if not (self._has_run or signals.are_handled()):
            self._handle()
        self._has_run = True
        if not self._single:
            return multihost_utils.reached_preemption_sync_point(train_step)
        return self.received is not None

    @contextlib.contextmanager
    def ending(self) -> Iterator[None]:
        """Raise `Interrupted` in the block if a signal was or is received.

        Not with several processes: all of them must reach the end of the block.
        """
        with signals.raising() if self._single else contextlib.nullcontext():
            yield


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

"""How a command ends on Ctrl-C (SIGINT), when its terminal closes (SIGHUP), and on SIGTERM.

A command ends at once, with one line and exit code 128 + the number of the signal: what it keeps is
on disk, as for a kill. `before_end` registers what must be written first, and training takes over
with `received_by`. A second Ctrl-C always ends at once.

Python runs handlers only when the main thread returns to Python, and a compilation takes minutes.
So all threads block SIGINT and SIGHUP, and one waits for them. The processes that they start, such
as data workers, block them too, and leave the end to their parent. SIGTERM isn't blocked, because
it ends workers: a second thread gets it through `signal.set_wakeup_fd`, or the main thread if a
library has replaced that.
"""

import _thread
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from types import FrameType
from typing import Any

from tp_jax.messages.output import discard_without_terminal

NUMBERS = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)
# A launcher may pass on the Ctrl-C that the process got from the terminal as well. Only after this
# many seconds is it a second one.
REPEATED_SECONDS = 0.2

Receiver = Callable[[int], None]


class Interrupted(KeyboardInterrupt):
    """A signal that ends the command. What it keeps is saved, and the user has been told."""

    def __init__(self, number: int) -> None:
        """Store the number of the signal."""
        super().__init__(signal.Signals(number).name)
        self.number = number


class _Handling:
    """The handlers and the threads; there is at most one, in `_current`."""

    def __init__(self, numbers: tuple[int, ...], in_command: bool) -> None:
        # A signal that is ignored stays so, as under nohup, and so does a handler that isn't
        # Python's.
        left_alone = (signal.SIG_IGN, None)
        self.numbers = [n for n in numbers if signal.getsignal(n) not in left_alone]
        self.in_command = in_command
        self.receivers: list[Receiver] = []
        self.cleanups: list[Callable[[], None]] = []
        self.raising, self.seen, self._echo = False, 0, 0
        self._first, self._removed, self._ending = 0.0, False, threading.Lock()
        self._blocked = {number for number in self.numbers if number != signal.SIGTERM}
        self._pipe = os.pipe()
        os.set_blocking(self._pipe[1], False)
        self._threads: list[threading.Thread] = []
        self._before: Any = None

    def install(self) -> None:
        fd = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        handlers = {number: signal.getsignal(number) for number in self.numbers}
        self.set_handlers()
        self._before = fd, handlers, self.block()
        for wait in (self._wait_for_blocked, self._wait_for_others):
            self._threads.append(threading.Thread(target=wait, daemon=True))
            self._threads[-1].start()

    def block(self) -> Any:
        return signal.pthread_sigmask(signal.SIG_BLOCK, self._blocked)

    def set_handlers(self) -> None:
        for number in self.numbers:
            signal.signal(number, self._in_main_thread)

    def remove(self) -> None:
        fd, handlers, mask = self._before
        self._removed = True
        if self._blocked:
            signal.pthread_kill(self._threads[0].ident or 0, min(self._blocked))
        signal.set_wakeup_fd(fd)
        os.close(self._pipe[1])
        for thread in self._threads:
            thread.join()
        os.close(self._pipe[0])
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _wait_for_blocked(self) -> None:
        while self._blocked:
            number = signal.sigwait(self._blocked)
            if self._removed:
                return
            self._receive(number)

    def _wait_for_others(self) -> None:
        while received := os.read(self._pipe[0], 1):
            if received[0] in self.numbers:
                self._receive(received[0])

    def _in_main_thread(self, number: int, frame: FrameType | None) -> None:
        if signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False) != self._pipe[1]:
            self._receive(number)
        if self.raising:
            self.raising = False
            # This handler may run before the thread that receives the signal has seen it.
            raise Interrupted(self.seen or number)

    def _receive(self, number: int) -> None:
        if self._echo == number:
            self._echo = 0
            return
        now, self.seen = time.monotonic(), number
        if number == signal.SIGHUP:
            discard_without_terminal()
        if self._first and number == signal.SIGINT and now - self._first > REPEATED_SECONDS:
            if self.in_command:
                os._exit(128 + number)
            self.raising = True
            self._interrupt()
            return
        self._first = self._first or now
        receive = self.receivers[-1] if self.receivers else self.end
        raising = self.raising
        # In a thread of its own, so that this one sees a second Ctrl-C.
        threading.Thread(target=receive, args=(number,), daemon=True).start()
        if raising:
            self._interrupt()

    def _interrupt(self) -> None:
        main, number = threading.main_thread().ident, signal.SIGTERM
        if main and number in self.numbers:
            # Unlike a blocked signal, it also wakes the main thread up if that waits. Python
            # reports it as well, though it isn't another one.
            self._echo = number
            signal.pthread_kill(main, number)
        else:
            self._echo = self.seen
            _thread.interrupt_main(signal.Signals(self.seen))

    def end(self, number: int) -> None:
        if not self._ending.acquire(blocking=False):
            return
        for clean_up in reversed(self.cleanups):
            with contextlib.suppress(Exception):
                clean_up()
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        print_line("interrupted: run the same command to go on")
        processes = sys.modules.get("multiprocessing")
        for child in processes.active_children() if processes else ():
            child.terminate()
        os._exit(128 + number)


_current: _Handling | None = None


def print_line(text: str) -> None:
    """Print one line on stderr, from any thread, below a progress bar or the terminal's ^C."""
    bars = getattr(getattr(sys.modules.get("tqdm"), "tqdm", None), "_instances", ())
    start = "\n" if len(bars) or os.isatty(2) else ""
    with contextlib.suppress(OSError):  # The terminal is gone.
        os.write(2, f"{start}{text}\n".encode())


@contextlib.contextmanager
def handled(numbers: tuple[int, ...] = NUMBERS, *, in_command: bool = True) -> Iterator[None]:
    """Handle the signals in the block; only the main thread can, and not if they are already.

    Args:
      numbers: the signals to handle.
      in_command: the process is a command of tp_jax, and may be ended.
    """
    if _current or threading.current_thread() is not threading.main_thread():
        yield
        return
    install(numbers, in_command=in_command)
    try:
        yield
    finally:
        _remove()


def install(numbers: tuple[int, ...] = NUMBERS, *, in_command: bool = True) -> None:
    """Handle the signals from now on. Call it in the main thread, and only once."""
    global _current
    _current = _Handling(numbers, in_command)
    _current.install()


def _remove() -> None:
    global _current
    if _current:
        _current.remove()
    _current = None


def before_workers() -> None:
    """Make sure that processes which multiprocessing starts block the signals, too."""
    if _current:
        # When multiprocessing starts its tracker of resources, it unblocks SIGINT. The tracker
        # removes the shared memory of workers that are ended, and must not warn about it.
        sys.warnoptions.append("ignore:resource_tracker")
        resource_tracker.ensure_running()
        _current.block()


def take_back() -> None:
    """Set the handlers again, after `jax.distributed` has set its own one for SIGTERM."""
    if _current:
        _current.set_handlers()


@contextlib.contextmanager
def before_end(clean_up: Callable[[], None]) -> Iterator[None]:
    """Call a function before a signal ends the process in the block, in another thread."""
    with _added(_current.cleanups if _current else [], clean_up):
        yield


@contextlib.contextmanager
def received_by(receive: Receiver, numbers: tuple[int, ...] = NUMBERS) -> Iterator[None]:
    """Call a function with each signal in the block, in another thread, instead of ending.

    Args:
      receive: called with the number of the signal.
      numbers: the signals to handle, if they aren't handled yet.
    """
    with (
        handled(numbers, in_command=False),
        _added(_current.receivers if _current else [], receive),
    ):
        yield


@contextlib.contextmanager
def _added(items: list[Any], item: Any) -> Iterator[None]:
    items.append(item)
    try:
        yield
    finally:
        items.remove(item)


@contextlib.contextmanager
def raising() -> Iterator[None]:
    """Also raise `Interrupted` in the main thread if a signal was received, or is in the block."""
    handling = _current
    try:
        if handling:
            handling.raising = True
            if handling.seen:
                raise Interrupted(handling.seen)
        yield
    finally:
        if handling:
            handling.raising = False


def are_handled() -> bool:
    """Return whether signals are handled, as they are in a command from its start."""
    return _current is not None


def end(number: int) -> None:
    """End the process as a signal does outside `received_by`."""
    if _current:
        _current.end(number)

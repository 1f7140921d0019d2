"""How a command ends on Ctrl-C (SIGINT), when its terminal closes (SIGHUP), and on SIGTERM.

A command ends at once, with one line and exit code 128 + the number of the signal: what it keeps is
on disk, as for a kill. `before_end` registers what must be written first, and training takes over
with `received_by`. A second Ctrl-C always ends at once.

A thread of its own receives the signals, because Python runs handlers only when the main thread
returns to Python, and a compilation takes minutes. The other threads block SIGINT and SIGHUP, and
so do the processes that they start, such as data workers, which leave the end to their parent.
"""

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
    """The handlers and the thread; there is at most one, in `_current`."""

    def __init__(self, numbers: tuple[int, ...]) -> None:
        # A signal that is ignored stays so, as under nohup.
        self.numbers = [n for n in numbers if signal.getsignal(n) is not signal.SIG_IGN]
        self.receivers: list[Receiver] = []
        self.cleanups: list[Callable[[], None]] = []
        self.raising, self.seen = False, 0
        self._ending = threading.Lock()
        self._pipe = os.pipe()
        os.set_blocking(self._pipe[1], False)
        self._before: Any = None

    def install(self) -> None:
        threading.Thread(target=self._watch, daemon=True).start()
        fd = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        handlers = {number: signal.getsignal(number) for number in self.numbers}
        self.set_handlers()
        self._before = fd, handlers, self.block()

    def block(self) -> Any:
        blocked = {n for n in self.numbers if n != signal.SIGTERM}
        return signal.pthread_sigmask(signal.SIG_BLOCK, blocked)

    def set_handlers(self) -> None:
        for number in self.numbers:
            signal.signal(number, self._in_main_thread)

    def remove(self) -> None:
        fd, handlers, mask = self._before
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(fd)
        os.close(self._pipe[1])

    def _in_main_thread(self, number: int, frame: FrameType | None) -> None:
        self.seen = number
        if self.raising:
            self.raising = False
            raise Interrupted(number)

    def _watch(self) -> None:
        first = 0.0
        while received := os.read(self._pipe[0], 1):
            number, now = received[0], time.monotonic()
            if number not in self.numbers:
                continue
            if first and number == signal.SIGINT and now - first > REPEATED_SECONDS:
                os._exit(128 + number)
            first = first or now
            receive = self.receivers[-1] if self.receivers else self.end
            # In a thread of its own, so that this one sees a second Ctrl-C.
            threading.Thread(target=receive, args=(number,), daemon=True).start()
        os.close(self._pipe[0])

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
    os.write(2, f"{chr(10) if len(bars) or os.isatty(2) else ''}{text}\n".encode())


@contextlib.contextmanager
def handled(numbers: tuple[int, ...] = NUMBERS) -> Iterator[None]:
    """Handle the signals in the block; only the main thread can, and not if they are already."""
    if _current or threading.current_thread() is not threading.main_thread():
        yield
        return
    install(numbers)
    try:
        yield
    finally:
        _remove()


def install(numbers: tuple[int, ...] = NUMBERS) -> None:
    """Handle the signals from now on. Call it in the main thread, and only once."""
    global _current
    _current = _Handling(numbers)
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
    with handled(numbers), _added(_current.receivers if _current else [], receive):
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


def end(number: int) -> None:
    """End the process as a signal does outside `received_by`."""
    if _current:
        _current.end(number)

"""Stderr whose reader may go away: a closed terminal, or a pipe to a program that has ended.

Messages are lost then; the work goes on, and what it keeps is saved.
"""

import contextlib
import errno
import os
import stat
import sys
from typing import Any

OUTPUTS = (1, 2)


class LenientStderr:
    """The current `sys.stderr`, without errors when something can't be written."""

    def __getattr__(self, name: str) -> Any:
        """Return any other attribute of the stream."""
        return getattr(sys.stderr, name)

    def write(self, text: str) -> int:
        """Write, if there is a reader."""
        self._try(sys.stderr.write, text)
        return len(text)

    def flush(self) -> None:
        """Flush, if there is a reader."""
        self._try(sys.stderr.flush)

    def _try(self, act: Any, *arguments: Any) -> None:
        try:
            act(*arguments)
        except OSError as error:
            # Python keeps what it couldn't write, and would try again. A full disk may recover.
            if error.errno in (errno.EIO, errno.EPIPE):
                _discard()


def discard_without_terminal() -> None:
    """Write stdout and stderr to nowhere from now on if they are a terminal that is gone."""
    with contextlib.suppress(OSError):
        if stat.S_ISCHR(os.fstat(2).st_mode) and not os.isatty(2):
            _discard()


def _discard() -> None:
    """Write stderr, and stdout if it goes to the same place, to nowhere from now on."""
    with contextlib.suppress(OSError):
        lost = os.fstat(2)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for number in OUTPUTS:
            if os.path.samestat(os.fstat(number), lost):
                os.dup2(nowhere, number)
        os.close(nowhere)

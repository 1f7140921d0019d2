"""Files of TensorBoard events that a full or read-only disk doesn't damage.

tensorboardX writes from a thread. An error there would end the thread, and training would wait for
it forever. Therefore its files are opened here, through its registry of file systems.
"""

import os
from typing import Any

from etils import epath
from tensorboardX import record_writer

from tp_jax.files.atomic import Dispensable, write_errors
from tp_jax.messages.errors import WriteError

# Bytes of events that are kept in memory while they can't be written.
MAX_PENDING = 1 << 26
_SCHEME = "tp_jax"


def tolerant_path(folder: epath.Path) -> str:
    """Return the path of a folder with a prefix that makes tensorboardX open `EventFile`s in it."""
    record_writer.register_writer_factory(_SCHEME, _Factory())
    return f"{_SCHEME}:{folder}"


class _Factory:
    def open(self, path: str) -> "EventFile":
        return EventFile(path.removeprefix(f"{_SCHEME}:"))

    def directory_check(self, path: str) -> None:
        """Do nothing: the folder is the workdir, which exists."""


class EventFile:
    """A file of events. What can't be written is written with the next events, or dropped.

    tensorboardX flushes only between two events, so that the file always ends with a whole one,
    except after a kill.
    """

    def __init__(self, path: str) -> None:
        self._path, self._dispensable = epath.Path(path), Dispensable()
        self._file: Any = None
        self._pending, self._size = bytearray(), 0

    def write(self, data: bytes) -> None:
        """Keep the bytes until they are flushed."""
        self._pending += data

    def flush(self) -> None:
        """Write everything; if that fails, warn once."""
        try:
            with write_errors(self._path):
                self._write()
        except WriteError as error:
            self._dispensable.warn("curves", error)
            if len(self._pending) > MAX_PENDING:
                self._pending.clear()

    def close(self) -> None:
        """Close the file; `flush` has warned if events can't be written."""
        if self._file is not None:
            try:
                self._file.close()
            except OSError as error:
                self._dispensable.warn("curves", error)

    def _write(self) -> None:
        if "://" in str(self._path):
            # An object in a bucket is written as a whole, by tensorboardX's own class.
            self._file = self._file or record_writer.open_file(str(self._path))
            self._file.write(bytes(self._pending))
            self._file.flush()
        else:
            # Without a buffer, which would keep what couldn't be written, and write it later.
            self._file = self._file or open(self._path, "wb", buffering=0)  # noqa: SIM115
            self._file.seek(self._size)
            rest = memoryview(bytes(self._pending))
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        self._size += len(self._pending)
        self._pending.clear()

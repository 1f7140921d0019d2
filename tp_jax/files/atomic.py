"""Atomic file writes: a reader sees the old file or the complete new one, never a partial file."""

import contextlib
import errno
import json
from collections.abc import Iterator
from typing import Any

from etils import epath

from tp_jax.messages.errors import WriteError
from tp_jax.messages.progress import say


@contextlib.contextmanager
def replacing(path: epath.Path) -> Iterator[epath.Path]:
    """Yield a temporary path next to `path`, and rename it to `path` if the block succeeds.

    The folder of `path` is created if it doesn't exist. After an error, `path` is unchanged and
    the temporary file is removed. If the process is killed inside the block, the temporary file
    may remain.

    Raises:
      WriteError: the file can't be written: the disk is full or read-only, say.
    """
    temporary = path.with_name(path.name + ".tmp")
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def write_errors(path: epath.Path, of_library: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turn an OSError inside the block into a WriteError that names `path`.

    Errors of other files, which the block may read, stay as they are.

    Args:
      path: the file or folder that is written.
      of_library: errors by which a library says in the block that it can't write.
    """
    try:
        yield
    except of_library as error:
        raise _write_error(path, " ".join(str(error).split())[:500]) from error
    except OSError as error:
        named = str(error.filename or path)
        if not (named.startswith(str(path)) or str(path).startswith(named)):
            raise
        raise _write_error(path, error.strerror or str(error)) from error


def _write_error(path: epath.Path, reason: str) -> WriteError:
    return WriteError(
        f"{path} can't be written ({reason}): make room there, or name a folder that can be "
        f"written to"
    )


# A full disk or quota, a file that is too large for it, and places that can't be written to.
_DISK_ERRORS = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO
)  # fmt: skip


def disk_error(error: OSError) -> WriteError:
    """Return a WriteError for an error of the disk; raise any other OSError again."""
    if error.errno not in _DISK_ERRORS:
        raise error
    place = f"{error.filename}: " if error.filename else ""
    return WriteError(
        f"{place}{error.strerror}: check that there is room, and that you may read and write there"
    )


class Dispensable:
    """Files that a program can do without: it warns once for each kind that can't be written."""

    def __init__(self) -> None:
        self._warned: set[str] = set()

    def warn(self, kind: str, error: Exception) -> None:
        """Print a warning, unless there was one for this kind of files, such as "sample grids"."""
        if kind not in self._warned:
            self._warned.add(kind)
            say(f"warning: the run goes on without {kind}: {' '.join(str(error).split())[:300]}")

    @contextlib.contextmanager
    def writing(self, kind: str) -> Iterator[None]:
        """Warn, instead of raising a WriteError, inside the block."""
        try:
            yield
        except WriteError as error:
            self.warn(kind, error)


def write_json(path: epath.Path, content: dict[str, Any]) -> None:
    """Write a JSON file atomically; see `replacing`."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path: epath.Path, content: str) -> None:
    """Write a UTF-8 text file atomically; see `replacing`."""
    write_bytes(path, content.encode())


def write_bytes(path: epath.Path, content: bytes) -> None:
    """Write a file atomically; see `replacing`."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)

"""Atomic file writes: a reader sees the old file or the complete new one, never a partial file."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from etils import epath


@contextlib.contextmanager
def replacing(path: epath.Path) -> Iterator[epath.Path]:
    """Yield a temporary path next to `path`, and rename it to `path` if the block succeeds.

    If the process is killed inside the block, `path` is unchanged and the temporary file may
    remain.
    """
    temporary = path.with_name(path.name + ".tmp")
    yield temporary
    temporary.replace(path)


def write_json(path: epath.Path, content: dict[str, Any]) -> None:
    """Write a JSON file atomically."""
    write_bytes(path, (json.dumps(content, indent=2) + "\n").encode())


def write_bytes(path: epath.Path, content: bytes) -> None:
    """Write a file atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)

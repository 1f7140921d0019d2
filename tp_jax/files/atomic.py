"""Files that are there whole or not at all."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from etils import epath


@contextlib.contextmanager
def replacing(path: epath.Path) -> Iterator[epath.Path]:
    """Yields a temporary path beside `path`, and renames it to `path` when the block ends well.

    A run that is killed meanwhile leaves the old file, and perhaps the temporary one.
    """
    temporary = path.with_name(path.name + ".tmp")
    yield temporary
    temporary.replace(path)


def write_json(path: epath.Path, content: dict[str, Any]) -> None:
    """Writes JSON; a kill leaves the old file or the new one."""
    write_bytes(path, (json.dumps(content, indent=2) + "\n").encode())


def write_bytes(path: epath.Path, content: bytes) -> None:
    """Writes a file; a kill leaves the old one or the new one."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)

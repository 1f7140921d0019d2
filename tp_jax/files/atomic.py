"""What a run tells a person, and files that are there whole or not at all."""

import json
from typing import Any

from etils import epath

from tp_jax.messages.errors import UserError


def make_folder(folder: epath.Path, name: str) -> None:
    """Makes a folder, and those that it lies in.

    Args:
      name: of what was asked for, as --out=DIR.

    Raises:
      UserError: it can't be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{name} can't be made: {error}; name another") from error


def write_json(path: epath.Path, content: dict[str, Any]) -> None:
    """Writes JSON; a kill leaves the old file or the new one."""
    write_bytes(path, (json.dumps(content, indent=2) + "\n").encode())


def write_bytes(path: epath.Path, content: bytes) -> None:
    """Writes a file; a kill leaves the old one or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)
    temporary.rename(path) if "://" in str(path) else temporary.replace(path)

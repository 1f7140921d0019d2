"""Files of one JSON object a line: read with checks, and written so that a kill loses one line."""

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

from etils import epath

from tp_jax.files.atomic import write_bytes
from tp_jax.messages.errors import UserError


def read_lines(path: epath.Path) -> list[tuple[str, dict[str, Any]]]:
    """The objects of a file, each with "FILE, line N" for messages; empty lines are skipped.

    Raises:
      UserError: the file isn't there, isn't text, or a line is no JSON object.
    """
    found = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            content = json.loads(line)
        except ValueError:
            raise UserError(
                f"{where}: no JSON, or cut short; each line must be one JSON object"
            ) from None
        if not isinstance(content, dict):
            raise UserError(f"{where}: must be a JSON object, not {type(content).__name__}")
        found.append((where, content))
    return found


def read_text(path: epath.Path) -> str:
    """A file of UTF-8 text.

    Raises:
      UserError: the file isn't there, or isn't that.
    """
    if path.is_dir() or not path.exists():
        raise UserError(f"{path}: there is no such file")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path}: isn't text in UTF-8") from None


def check_fields(where: str, content: dict[str, Any], fields: dict[str, type | tuple]) -> None:
    """Raises UserError unless `content` has every field, each of its type (a bool is no int)."""
    for name, kind in fields.items():
        if name not in content:
            raise UserError(f"{where}: has no {name!r}; it must have {', '.join(fields)}")
        value, kinds = content[name], kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            wanted = " or ".join(k.__name__ for k in kinds)
            raise UserError(f"{where}: {name}={value!r} must be {wanted}")


@contextlib.contextmanager
def appender(path: epath.Path) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yields a function that adds an object to what `path` has already, at once.

    `mend` comes before it where an earlier run may have been killed.
    """
    if "://" in str(path):
        raise UserError(f"{path}: lines are added to a local file; name one")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:

        def add(content: dict[str, Any]) -> None:
            file.write(json.dumps(content) + "\n")
            file.flush()

        yield add


def mend(path: epath.Path) -> None:
    """Drops a last line that a kill cut short, or ends it where only the line break is lost.

    Raises:
      UserError: the last line is no start of an object, so that this is some other file.
    """
    content = path.read_bytes() if path.exists() else b""
    last = content[content.rfind(b"\n") + 1 :]
    if not last:
        return
    if not last.startswith(b"{"):
        raise UserError(f"{path}: isn't a file of JSON lines; name another file")
    try:
        json.loads(last)
        content += b"\n"
    except ValueError:
        content = content[: -len(last)]
    write_bytes(path, content)


def read_json(path: epath.Path) -> dict[str, Any]:
    """A JSON object that this project wrote.

    Raises:
      UserError: the file is damaged.
    """
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged ({error}): make it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object: make it again")
    return content

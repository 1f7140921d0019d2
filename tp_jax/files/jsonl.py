"""JSON and JSONL files: read with checks, and append so that a kill loses at most one line."""

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

from etils import epath

from tp_jax.files.atomic import write_bytes
from tp_jax.messages.errors import UserError


def read_lines(path: epath.Path) -> list[tuple[str, dict[str, Any]]]:
    """Read a JSONL file; empty lines are skipped.

    Returns:
      ("FILE, line N", object) for each line; the first is for error messages.

    Raises:
      UserError: the file doesn't exist, isn't UTF-8 text, or a line isn't a JSON object.
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
                f"{where}: invalid or truncated JSON; each line must be one JSON object"
            ) from None
        if not isinstance(content, dict):
            raise UserError(f"{where}: must be a JSON object, not {type(content).__name__}")
        found.append((where, content))
    return found


def read_text(path: epath.Path) -> str:
    """Read a UTF-8 text file.

    Raises:
      UserError: the file doesn't exist or isn't UTF-8 text.
    """
    if path.is_dir() or not path.exists():
        raise UserError(f"{path}: there is no such file")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path}: isn't UTF-8 text; convert it to UTF-8") from None


def check_fields(where: str, content: dict[str, Any], fields: dict[str, type | tuple]) -> None:
    """Raise a UserError unless `content` has all `fields` with their types; bool isn't an int.

    Args:
      where: file and line for the error message.
      fields: the accepted type or types of each required field.
    """
    for name, kind in fields.items():
        if name not in content:
            raise UserError(
                f"{where}: has no {name!r}; the required fields are {', '.join(fields)}"
            )
        value, kinds = content[name], kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            wanted = " or ".join(k.__name__ for k in kinds)
            raise UserError(f"{where}: {name}={value!r} must be {wanted}")


@contextlib.contextmanager
def appender(path: epath.Path) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yield a function that appends one object to a JSONL file and flushes it.

    If an earlier run may have been killed while it wrote the file, call `repair_last_line` first.

    Raises:
      UserError: `path` is a URL such as gs://…, to which lines can't be appended.
    """
    if "://" in str(path):
        raise UserError(f"{path}: can't append lines to a remote file; name a local file")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:

        def add(content: dict[str, Any]) -> None:
            file.write(json.dumps(content) + "\n")
            file.flush()

        yield add


def repair_last_line(path: epath.Path) -> None:
    """Remove a truncated last line of a JSONL file, or add its missing line break.

    Raises:
      UserError: the last line doesn't begin with "{", so the file isn't a JSONL file.
    """
    content = path.read_bytes() if path.exists() else b""
    last = content[content.rfind(b"\n") + 1 :]
    if not last:
        return
    if not last.startswith(b"{"):
        raise UserError(f"{path}: isn't a JSONL file; name another file")
    try:
        json.loads(last)
        content += b"\n"
    except ValueError:
        content = content[: -len(last)]
    write_bytes(path, content)


def read_json(path: epath.Path) -> dict[str, Any]:
    """Read a JSON object that tp_jax wrote.

    Raises:
      UserError: the file is damaged or holds no JSON object.
    """
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged ({error}); write it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object; write it again")
    return content

"""JSON and JSONL files: read with checks, and append so that a kill loses at most one line."""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from etils import epath

from tp_jax.files.atomic import write_bytes, write_errors
from tp_jax.files.pointers import check_pointer
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
      UserError: the file doesn't exist, can't be read, isn't UTF-8 text, or is a Git LFS pointer.
    """
    if path.is_dir() or not path.exists():
        raise UserError(f"{path}: there is no such file")
    try:
        content = path.read_bytes()
        check_pointer(path, content)
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path}: isn't UTF-8 text; convert it to UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror or error})") from error


# The accepted type or types of each required field of a JSON object.
Fields = Mapping[str, type | tuple[type, ...]]


def check_fields(where: str, content: dict[str, Any], fields: Fields) -> None:
    """Raise a UserError unless `content` has all `fields` with their types; bool isn't an int.

    Args:
      where: file and line for the error message.
      fields: the accepted type or types of each required field.
    """
    problem = _wrong_field(content, fields)
    if problem:
        raise UserError(f"{where}: {problem}")


def _wrong_field(content: dict[str, Any], fields: Fields) -> str | None:
    """Return what is wrong with the first field that is missing or has another type."""
    for name, kind in fields.items():
        if name not in content:
            return f"has no {name!r}; the required fields are {', '.join(fields)}"
        value, kinds = content[name], kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            wanted = " or ".join(k.__name__ for k in kinds)
            return f"{name}={_cut(repr(value))} must be {wanted}"
    return None


def _cut(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:80]} …"


@contextlib.contextmanager
def appender(path: epath.Path) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yield a function that appends one object to a JSONL file and flushes it.

    If an earlier run may have been killed while it wrote the file, call `repair_last_line` first.

    Raises:
      UserError: `path` is a URL such as gs://…, to which lines can't be appended.
      WriteError: the file can't be opened; or, from the function, the line can't be written.
    """
    if "://" in str(path):
        raise UserError(f"{path}: can't append lines to a remote file; name a local file")
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")

    def add(content: dict[str, Any]) -> None:
        with write_errors(path):
            file.write(json.dumps(content) + "\n")
            file.flush()

    try:
        yield add
    finally:
        # After a write error, closing tries to write the rest again.
        with contextlib.suppress(OSError):
            file.close()


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


def read_json(
    path: epath.Path,
    fields: Fields | None = None,
    remedy: str = "write it again",
    problem: str = "is damaged",
) -> dict[str, Any]:
    """Read a file with one JSON object, such as the small files in a workdir.

    Args:
      path: the file.
      fields: the accepted type or types of each required field.
      remedy: what the user can do, for the error message.
      problem: what the file is then, for the error message.

    Raises:
      UserError: the file is missing, empty, binary or cut, or a folder, or can't be read, or holds
        something else than a JSON object with the required fields.
    """
    content, reason = {}, None
    try:
        content = json.loads(path.read_bytes().decode())
        if not isinstance(content, dict):
            reason = f"it holds a JSON {type(content).__name__}, not an object"
        else:
            reason = _wrong_field(content, fields or {})
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file; {remedy}") from None
    except IsADirectoryError:
        reason = "it is a folder"
    except OSError as error:
        reason = error.strerror or str(error)
    except UnicodeDecodeError:
        reason = "it holds binary data"
    except (ValueError, RecursionError) as error:
        reason = str(error) if path.stat().length else "it is empty"
    if reason:
        raise UserError(f"{path} {problem} ({reason}); {remedy}")
    return content

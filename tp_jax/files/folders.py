"""Output folders: create them, refuse those of another program, count files by kind."""

import collections
from collections.abc import Iterable

from etils import epath

from tp_jax.messages.errors import UserError

# Names the process that writes to a folder, see `workdir.lock`; other files of the lock begin so.
HOLDER = "holder.json"


def make_folder(folder: epath.Path, name: str) -> None:
    """Create a folder and its parents.

    Args:
      name: the flag or config field that names the folder, with its value, e.g. "--out=DIR".

    Raises:
      UserError: the folder can't be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{name} can't be created: {error}; name another folder") from error


def can_resume(folder: epath.Path, marker: epath.Path | None, name: str, owner: str = "") -> bool:
    """Return whether an output folder holds an earlier run of the same program.

    Args:
      marker: the file that the program writes first, in the folder or next to it. None accepts
        only a new or empty folder.
      name: the flag or config field that names the folder, with its value, e.g. "--out=DIR".
      owner: name of the program that writes the marker, for the error message.

    Returns:
      True if the marker exists, False if the folder is new or empty.

    Raises:
      UserError: `folder` is a file, or holds files but no marker.
    """
    if not folder.exists():
        return False
    if not folder.is_dir():
        raise UserError(f"{name} is a file: name a folder")
    if marker is not None and marker.exists():
        return True
    # A run that is killed before or while it writes the marker leaves these files.
    known = (f"{marker.name}.tmp", HOLDER) if marker is not None else ()
    if not all(path.name.startswith(known) for path in folder.iterdir()):
        missing = f"files but no {marker.name}" if marker is not None else "files already"
        missing += f", so it wasn't created by {owner}" if owner else ""
        raise UserError(f"{name} holds {missing}: name a new or empty folder")
    return False


def describe_files(paths: Iterable[epath.Path]) -> str:
    """Count files by ending, and folders, such as "3 files (.jpg 2, .webp 1), 1 folder".

    Example:
      >>> describe_files(map(epath.Path, ("a.jpg", "b.JPG", "notes")))
      '3 files (.jpg 2, no ending 1)'
    """
    paths = list(paths)
    folders = sum(path.is_dir() for path in paths)
    endings = collections.Counter(
        path.suffix.lower() or "no ending" for path in paths if not path.is_dir()
    )
    ordered = sorted(endings.items(), key=lambda item: (-item[1], item[0]))
    listed = ", ".join(f"{ending} {count}" for ending, count in ordered)
    parts = [f"{_count(endings.total(), 'file')} ({listed})"] if endings else []
    parts += [_count(folders, "folder")] if folders else []
    return ", ".join(parts)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"

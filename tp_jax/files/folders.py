"""Folders that a run writes into: made, and never mixed with files of somebody else."""

from etils import epath

from tp_jax.messages.errors import UserError


def make_folder(folder: epath.Path, name: str) -> None:
    """Makes a folder and its parents.

    Args:
      name: the flag or field that asked for it, with its value, as "--out=DIR".

    Raises:
      UserError: it can't be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{name} can't be made: {error}; name another") from error


def is_begun(folder: epath.Path, marker: epath.Path | None, name: str, owner: str = "") -> bool:
    """Whether an earlier run of the same program began a folder.

    Args:
      marker: the file that such a run writes first, in the folder or beside it; None where only a
        new or empty folder will do.
      name: the flag or field that names the folder, with its value, as "--out=DIR".
      owner: for the message: what would have written the marker.

    Returns:
      True where the marker is there, False where the folder is new or empty.

    Raises:
      UserError: it is a file, or holds files but no marker.
    """
    if not folder.exists():
        return False
    if not folder.is_dir():
        raise UserError(f"{name} is a file: name a folder")
    if marker is not None and marker.exists():
        return True
    # A run that is killed at its very start leaves the marker under its temporary name.
    known = {f"{marker.name}.tmp"} if marker is not None else set()
    if any(path.name not in known for path in folder.iterdir()):
        missing = f"files but no {marker.name}" if marker is not None else "files already"
        missing += f", so no run of {owner} made it" if owner else ""
        raise UserError(f"{name} holds {missing}: name a new or empty folder")
    return False

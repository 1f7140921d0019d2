"""Checksums of finished checkpoints, because Orbax restores some damaged files without an error.

`checksums/STEP.json` lists every file of a checkpoint with its size and its SHA-256. It is written
last, when the checkpoint is complete. Those of earlier versions have a CRC-32 instead.
"""

import contextlib
import hashlib
import threading
import zlib

from etils import epath

from tp_jax.files.atomic import Dispensable, write_json
from tp_jax.files.jsonl import read_json
from tp_jax.messages.errors import UserError

CHECKPOINTS, FOLDER = "checkpoints", "checksums"
# A field of the progress that a checkpoint holds, if it was saved with checksums.
HAS_CHECKSUMS = "has_checksums"
# The content of the file until the checksums are computed.
PENDING = {"pending": True}
BLOCK = 1 << 24  # bytes


# {relative path: [bytes, SHA-256 in hex]}, or of an earlier version [bytes, CRC-32]
Sums = dict[str, list[int | str]]


def _checksum(path: epath.Path, crc32: bool) -> list[int | str]:
    size, crc, sha = 0, 0, hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            size += len(block)
            if crc32:
                crc = zlib.crc32(block, crc)
            else:
                sha.update(block)
    return [size, crc if crc32 else sha.hexdigest()]


def file_checksums(folder: epath.Path, *, crc32: bool = False) -> Sums:
    """Return {relative path: [bytes, SHA-256]} of all files in a folder and its subfolders.

    Args:
      folder: the folder.
      crc32: compute the CRC-32 of earlier versions instead.
    """
    found: Sums = {}
    folders = [("", folder)]
    while folders:
        prefix, current = folders.pop()
        for path in sorted(current.iterdir()):
            if path.is_dir():
                folders.append((f"{prefix}{path.name}/", path))
                continue
            if not path.exists():
                continue  # A link to nothing counts as missing.
            found[prefix + path.name] = _checksum(path, crc32)
    return found


def read_checksums(workdir: epath.Path, step: int) -> Sums | None:
    """Read the checksums of a checkpoint.

    Returns:
      The checksums of its files; None if they aren't computed yet, or never were because the run
      was killed after it saved the checkpoint, or because an early version saved it.

    Raises:
      UserError: they are damaged, or missing though the checkpoint was saved with checksums.
    """
    path = workdir / FOLDER / f"{step}.json"
    remedy = f"--allow_unchecked uses checkpoint {step} without a check"
    if not path.exists():
        progress = workdir / CHECKPOINTS / str(step) / "progress" / "metadata"
        if HAS_CHECKSUMS not in read_json(progress, remedy=remedy):
            return None
    content = read_json(path, remedy=remedy)
    if content == PENDING:
        return None
    for name, entry in content.items():
        kinds = list(map(type, entry)) if isinstance(entry, list) else []
        if kinds not in ([int, str], [int, int]):
            raise UserError(f"{path} is damaged ({name}: {str(entry)[:50]}); {remedy}")
    return content


def is_verified(workdir: epath.Path, step: int) -> bool:
    """Return whether the checkpoint has readable checksums."""
    try:
        return read_checksums(workdir, step) is not None
    except UserError:
        return False


def find_damage(workdir: epath.Path, step: int, folder: epath.Path) -> str | None:
    """Compare a checkpoint's files with their checksums.

    Args:
      workdir: the workdir.
      step: the train step of the checkpoint.
      folder: the checkpoint's folder.

    Returns:
      One line that names a damaged file; None if all files are as written, or if the checksums
      aren't computed yet.

    Raises:
      UserError: the checksums are missing or damaged.
    """
    written = read_checksums(workdir, step)
    if written is None:
        return None
    found = file_checksums(folder, crc32=any(isinstance(sum, int) for _, sum in written.values()))
    for name in sorted(written.keys() | found.keys()):
        if name not in found:
            return f"{name} is missing"
        if name not in written:
            return f"{name} isn't part of the checkpoint"
        if found[name][0] != written[name][0]:
            return f"{name} has {found[name][0]} bytes instead of {written[name][0]}"
        if found[name] != written[name]:
            return f"the checksum of {name} is wrong"
    return None


class Checksums:
    """Writes the checksums of each checkpoint in a background thread, once it is saved."""

    def __init__(self, workdir: epath.Path) -> None:
        self._workdir, self._saves_ended = workdir, threading.Event()
        self._dispensable = Dispensable()
        self._threads: list[threading.Thread] = []

    def begin(self, step: int) -> None:
        """Record that a checkpoint is being saved, before the save begins.

        A checkpoint without any record has lost it, and counts as damaged.

        Raises:
          WriteError: the record can't be written.
        """
        write_json(self._workdir / FOLDER / f"{step}.json", PENDING)

    def write_when_saved(self, step: int, folder: epath.Path) -> None:
        """Start a thread that waits for a running save and then writes its checksums."""
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        thread = threading.Thread(target=self._write, args=(step, folder), daemon=True)
        self._threads.append(thread)
        thread.start()

    def close(self) -> None:
        """Wait for the threads. Call it when no save is running any more."""
        self._saves_ended.set()
        for thread in self._threads:
            thread.join()
        if self._threads:
            self._remove_old(None)

    def _write(self, step: int, folder: epath.Path) -> None:
        # Orbax renames the folder into place once it is complete.
        while not folder.exists():
            if self._saves_ended.wait(0.05) and not folder.exists():
                return  # The save failed.
        self._remove_old(step)
        # Orbax may delete the checkpoint meanwhile, if newer ones have replaced it.
        with contextlib.suppress(FileNotFoundError), self._dispensable.writing("checksums"):
            write_json(self._workdir / FOLDER / f"{step}.json", file_checksums(folder))

    def _remove_old(self, before: int | None) -> None:
        """Remove the checksums of checkpoints that were removed; those of later saves may begin."""
        for path in (self._workdir / FOLDER).glob("*.json"):
            old = path.stem.isdigit() and (before is None or int(path.stem) < before)
            if old and not (self._workdir / CHECKPOINTS / path.stem).exists():
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)

"""Checksums of finished checkpoints, because Orbax restores some damaged files without an error."""

import contextlib
import json
import threading
import zlib

from etils import epath

from tp_jax.files.atomic import write_json

FOLDER = "checksums"
BLOCK = 1 << 24  # bytes


def file_checksums(folder: epath.Path) -> dict[str, list[int]]:
    """Return {relative path: [bytes, CRC-32]} of all files in a folder and its subfolders."""
    found, folders = {}, [("", folder)]
    while folders:
        prefix, current = folders.pop()
        for path in sorted(current.iterdir()):
            if path.is_dir():
                folders.append((f"{prefix}{path.name}/", path))
                continue
            size = checksum = 0
            with path.open("rb") as file:
                while block := file.read(BLOCK):
                    size, checksum = size + len(block), zlib.crc32(block, checksum)
            found[prefix + path.name] = [size, checksum]
    return found


def find_damage(workdir: epath.Path, step: int, folder: epath.Path) -> str | None:
    """Compare a checkpoint's files with their checksums.

    Args:
      workdir: the workdir.
      step: the train step of the checkpoint.
      folder: the checkpoint's folder.

    Returns:
      One line that names a damaged file; None if all files are as written, or if there are no
      checksums because the run was killed after the save and before they were written.
    """
    path = workdir / FOLDER / f"{step}.json"
    if not path.exists():
        return None
    written, found = json.loads(path.read_text()), file_checksums(folder)
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
        self._threads: list[threading.Thread] = []

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

    def _write(self, step: int, folder: epath.Path) -> None:
        # Orbax renames the folder into place once it is complete.
        while not folder.exists():
            if self._saves_ended.wait(0.05) and not folder.exists():
                return  # The save failed.
        checksums = self._workdir / FOLDER
        checksums.mkdir(parents=True, exist_ok=True)
        for old in checksums.glob("*.json"):
            if not (folder.parent / old.stem).exists():
                old.unlink(missing_ok=True)
        # Orbax may delete the checkpoint meanwhile, if newer ones have replaced it.
        with contextlib.suppress(FileNotFoundError):
            write_json(checksums / f"{step}.json", file_checksums(folder))

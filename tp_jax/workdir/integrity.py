"""Checksums of finished checkpoints: Orbax itself reads some damaged bytes without a word."""

import contextlib
import json
import threading
import zlib

from etils import epath

from tp_jax.files.atomic import write_json

FOLDER = "checksums"
BLOCK = 1 << 24  # bytes


def file_checksums(folder: epath.Path) -> dict[str, list[int]]:
    """{relative path: [bytes, CRC-32]} of every file below a folder."""
    found, folders = {}, [("", folder)]
    while folders:
        name, place = folders.pop()
        for path in sorted(place.iterdir()):
            if path.is_dir():
                folders.append((f"{name}{path.name}/", path))
                continue
            size = checksum = 0
            with path.open("rb") as file:
                while block := file.read(BLOCK):
                    size, checksum = size + len(block), zlib.crc32(block, checksum)
            found[name + path.name] = [size, checksum]
    return found


def find_damage(workdir: epath.Path, step: int, folder: epath.Path) -> str | None:
    """What is wrong with a checkpoint's files; None where nothing is known to be.

    Args:
      step: of the checkpoint, whose files are in `folder`.

    Returns:
      One line that names a file. A run killed in the moment between a save's end and its
      checksums leaves none, and then nothing is known.
    """
    path = workdir / FOLDER / f"{step}.json"
    if not path.exists():
        return None
    wanted, found = json.loads(path.read_text()), file_checksums(folder)
    for name in sorted(wanted.keys() | found.keys()):
        if name not in found:
            return f"{name} is missing"
        if name not in wanted:
            return f"{name} doesn't belong there"
        if found[name][0] != wanted[name][0]:
            return f"{name} has {found[name][0]} bytes instead of {wanted[name][0]}"
        if found[name] != wanted[name]:
            return f"the checksum of {name} is wrong"
    return None


class Checksums:
    """Writes the checksums of each checkpoint, in the background, once its folder is there."""

    def __init__(self, workdir: epath.Path) -> None:
        self._workdir, self._saves_ended = workdir, threading.Event()
        self._threads: list[threading.Thread] = []

    def follow(self, step: int, folder: epath.Path) -> None:
        """Waits for a save that has begun."""
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        thread = threading.Thread(target=self._write, args=(step, folder), daemon=True)
        self._threads.append(thread)
        thread.start()

    def close(self) -> None:
        """Finishes; to be called when no save is under way any more."""
        self._saves_ended.set()
        for thread in self._threads:
            thread.join()

    def _write(self, step: int, folder: epath.Path) -> None:
        # Orbax renames the folder into place when it is whole.
        while not folder.exists():
            if self._saves_ended.wait(0.05) and not folder.exists():
                return  # The save failed.
        place = self._workdir / FOLDER
        place.mkdir(parents=True, exist_ok=True)
        for old in place.glob("*.json"):
            if not (folder.parent / old.stem).exists():
                old.unlink(missing_ok=True)
        # Gone in the meantime, because newer ones are kept instead.
        with contextlib.suppress(FileNotFoundError):
            write_json(place / f"{step}.json", file_checksums(folder))

"""Write samples to part files first and join them into one npz, so that a killed run can resume.

The parts of OUT.npz are the files OUT.npz.parts/00001024.npy, named by the index of their first
sample, and OUT.npz.drawing.json describes them. H×W pixels, C channels.
"""

import contextlib
import dataclasses
import threading
import time
import zipfile
from typing import Any, Self

import jax
import numpy as np
from etils import epath

from tp_jax.cli import signals
from tp_jax.files.atomic import replacing, write_json
from tp_jax.files.jsonl import read_json
from tp_jax.parallel.processes import broadcast_from_first
from tp_jax.pictures.reading import FILES
from tp_jax.sampling.description import claim, path_beside

# A part is written once this many samples are pending, or this long after the last part.
PART_SAMPLES, PART_SECONDS = 1_024, 60.0


def open_parts(out: epath.Path, description: dict[str, Any], overwrite: bool = False) -> "Parts":
    """Open the parts of `out`: those of an interrupted run, or a new folder.

    Args:
      out: the npz file that the parts will be joined into.
      description: JSON object with everything that determines the samples.
      overwrite: remove the npz or the parts of another description.

    Raises:
      UserError: the npz exists without a description, or it or the folder is of a run with another
        description and `overwrite` isn't set.
    """
    folder, path = out.with_name(out.name + ".parts"), path_beside(out)
    earlier = folder / "drawing.json"  # where earlier versions wrote the description
    files = {FILES: [out.name]}
    if earlier.exists() and not path.exists() and jax.process_index() == 0:
        write_json(path, read_json(earlier) | files)
    claim(out, path, description | files, overwrite=overwrite, also=(folder.name,))
    num = 0
    if jax.process_index() == 0 and not out.exists():
        folder.mkdir(parents=True, exist_ok=True)
        num = sum(len(_load_part(part)) for part in _contiguous_parts(folder))
    complete = bool(broadcast_from_first(out.exists()))
    return Parts(out, folder, broadcast_from_first(num), complete)


def _contiguous_parts(folder: epath.Path) -> list[epath.Path]:
    """Return the parts from the first sample up to the first gap, in order."""
    parts, num = [], 0
    for path in sorted(folder.glob("*.npy")):
        if int(path.stem) != num:
            break
        parts.append(path)
        num += len(_load_part(path))
    return parts


def _load_part(path: epath.Path) -> np.ndarray:
    if "://" in str(path):
        with path.open("rb") as file:
            return np.load(file)
    return np.load(path, mmap_mode="r")


@dataclasses.dataclass
class Parts:
    """The part files of one npz; only the first process writes.

    Attributes:
      out: the npz file.
      folder: the folder of the parts.
      num_written: samples on disk.
      complete: whether the npz exists already.
    """

    out: epath.Path
    folder: epath.Path
    num_written: int
    complete: bool = False
    _pending: list[np.ndarray] = dataclasses.field(default_factory=list)
    _last_write: float = dataclasses.field(default_factory=time.monotonic)
    _lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)
    _entered: contextlib.ExitStack = dataclasses.field(default_factory=contextlib.ExitStack)

    def __enter__(self) -> Self:
        """Keep the samples until then if an error or a signal ends the block."""
        self._entered.enter_context(signals.before_end(self._write))
        return self

    def __exit__(self, *error: object) -> None:
        self._entered.close()
        self._write()

    def add(self, images: np.ndarray) -> None:
        """Append samples [n, H, W, C] uint8, and write a part if it is due."""
        if jax.process_index():
            return
        self._pending.append(images)
        due = time.monotonic() - self._last_write >= PART_SECONDS
        if due or sum(map(len, self._pending)) >= PART_SAMPLES:
            self._write()

    def _write(self) -> None:
        with self._lock:  # A signal calls this in another thread.
            if not self._pending:
                return
            part, self._pending = np.concatenate(self._pending), []
            path = self.folder / f"{self.num_written:08d}.npy"
            with replacing(path) as temporary, temporary.open("wb") as file:
                np.save(file, part)
            self.num_written, self._last_write = self.num_written + len(part), time.monotonic()

    def join(self, labels: np.ndarray) -> None:
        """Write the npz with only one part in memory at a time, then delete the parts.

        Args:
          labels: [N] class labels or prompts of all samples.
        """
        if jax.process_index():
            return
        self._write()
        paths = _contiguous_parts(self.folder)
        shape = (self.num_written, *_load_part(paths[0]).shape[1:])
        with (
            replacing(self.out) as temporary,
            temporary.open("wb") as file,
            zipfile.ZipFile(file, "w") as archive,
        ):
            with archive.open("arr_0.npy", "w", force_zip64=True) as member:
                header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(member, header)
                for path in paths:
                    member.write(np.ascontiguousarray(_load_part(path)).data)
            with archive.open("arr_1.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, labels)
        self.folder.rmtree()

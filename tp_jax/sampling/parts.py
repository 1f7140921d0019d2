"""Write samples to part files first and join them into one npz, so that a killed run can resume.

The parts of OUT.npz are the files OUT.npz.parts/00001024.npy, named by the index of their first
sample. H×W pixels, C channels.
"""

import dataclasses
import time
import zipfile
from typing import Any

import jax
import numpy as np
from etils import epath

from tp_jax.files.atomic import replacing, write_json
from tp_jax.parallel.processes import broadcast_from_first
from tp_jax.sampling.request import check_same_drawing

# A part is written once this many samples are pending, or this long after the last part.
PART_SAMPLES, PART_SECONDS = 1_024, 60.0


def open_parts(out: epath.Path, description: dict[str, Any]) -> "Parts":
    """Open the parts of `out`: those of an interrupted run, or a new folder.

    Args:
      out: the npz file that the parts will be joined into.
      description: JSON object with everything that determines the samples.

    Raises:
      UserError: the folder holds parts of a run with another description.
    """
    folder = out.with_name(out.name + ".parts")
    path, num = folder / "drawing.json", 0
    if path.exists():
        check_same_drawing(path, description, f"{folder} holds parts", f"delete {folder}")
        num = sum(len(_load_part(part)) for part in _contiguous_parts(folder))
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, description)
    return Parts(out, folder, broadcast_from_first(num))


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
    """

    out: epath.Path
    folder: epath.Path
    num_written: int
    _pending: list[np.ndarray] = dataclasses.field(default_factory=list)
    _last_write: float = dataclasses.field(default_factory=time.monotonic)

    def add(self, images: np.ndarray) -> None:
        """Append samples [n, H, W, C] uint8, and write a part if it is due."""
        if jax.process_index():
            return
        self._pending.append(images)
        due = time.monotonic() - self._last_write >= PART_SECONDS
        if due or sum(map(len, self._pending)) >= PART_SAMPLES:
            self._write()

    def _write(self) -> None:
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

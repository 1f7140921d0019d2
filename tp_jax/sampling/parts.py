"""Samples in parts beside the npz that they become, so that a killed drawing goes on.

N samples of [H, W, C] uint8.
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

# A part is written when it has so many samples, or when the last one is so many seconds old.
ROWS, SECONDS = 1_024, 60.0


def open_parts(out: epath.Path, description: dict[str, Any]) -> "Parts":
    """Opens the parts of `out`, of an earlier start or new ones.

    Args:
      description: JSON of what decides the samples.

    Raises:
      UserError: the parts that are there are of another drawing.
    """
    folder = out.with_name(out.name + ".parts")
    path, rows = folder / "drawing.json", 0
    if path.exists():
        check_same_drawing(path, description, f"{folder} holds parts", f"delete {folder}")
        rows = sum(len(_read(part)) for part in _in_order(folder))
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, description)
    return Parts(out, folder, broadcast_from_first(rows))


def _in_order(folder: epath.Path) -> list[epath.Path]:
    """The parts that follow each other without a gap, from the first sample on."""
    parts, rows = [], 0
    for path in sorted(folder.glob("*.npy")):
        if int(path.stem) != rows:
            break
        parts.append(path)
        rows += len(_read(path))
    return parts


def _read(path: epath.Path) -> np.ndarray:
    if "://" in str(path):
        with path.open("rb") as file:
            return np.load(file)
    return np.load(path, mmap_mode="r")


@dataclasses.dataclass
class Parts:
    """Samples written so far; on processes but the first it only counts.

    Attributes:
      rows: samples that are on disk.
    """

    out: epath.Path
    folder: epath.Path
    rows: int
    _waiting: list[np.ndarray] = dataclasses.field(default_factory=list)
    _written: float = dataclasses.field(default_factory=time.monotonic)

    def add(self, images: np.ndarray) -> None:
        """Takes the next samples [n, H, W, C] uint8; writes a part when there are enough."""
        if jax.process_index():
            return
        self._waiting.append(images)
        old = time.monotonic() - self._written >= SECONDS
        if old or sum(map(len, self._waiting)) >= ROWS:
            self._write()

    def _write(self) -> None:
        if not self._waiting:
            return
        part, self._waiting = np.concatenate(self._waiting), []
        path = self.folder / f"{self.rows:08d}.npy"
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.save(file, part)
        self.rows, self._written = self.rows + len(part), time.monotonic()

    def join(self, labels: np.ndarray) -> None:
        """Writes the npz, a part in memory at a time, and deletes the parts."""
        if jax.process_index():
            return
        self._write()
        paths = _in_order(self.folder)
        shape = (self.rows, *_read(paths[0]).shape[1:])
        with (
            replacing(self.out) as temporary,
            temporary.open("wb") as file,
            zipfile.ZipFile(file, "w") as archive,
        ):
            with archive.open("arr_0.npy", "w", force_zip64=True) as member:
                header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(member, header)
                for path in paths:
                    member.write(np.ascontiguousarray(_read(path)).data)
            with archive.open("arr_1.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, labels)
        self.folder.rmtree()

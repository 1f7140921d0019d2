"""Pictures read back: one, or those of a file or a folder, a few rows at a time."""

import contextlib
import dataclasses
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO

import numpy as np
from etils import epath
from PIL import Image, ImageOps

from tp_jax.messages.errors import UserError

ARRAY = "arr_0"
GRID = "grid.png"  # tp_jax.sample writes it beside its samples
UNREADABLE = (OSError, EOFError, ValueError, SyntaxError, NotImplementedError, zlib.error,
              zipfile.BadZipFile)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Images that have been found and checked but not read.

    Attributes:
      size: height and width in pixels.
      read: (rows at once) -> iterator of uint8 [≤ rows, H, W, 3]; grey is repeated to RGB.
    """

    path: epath.Path
    count: int
    size: tuple[int, int]
    read: Callable[[int], Iterator[np.ndarray]]

    def batches(self, batch_size: int, count: int) -> Iterator[np.ndarray]:
        """Yields the first `count` images, uint8 [≤ batch_size, H, W, 3].

        Raises:
          UserError: the file is damaged; the message names the rows.
        """
        for start, batch in enumerate(self.read(batch_size)):
            if start * batch_size >= count:
                return
            yield batch[: count - start * batch_size]


def open_images(path: epath.Path) -> ImageSet:
    """The images of FILE.npz (its `arr_0`) or of a folder of PNGs, in the order of their names.

    Raises:
      UserError: nothing is there, or it isn't uint8 images of one size with 1 or 3 channels.
    """
    if path.is_dir():
        return _open_folder(path)
    if not path.exists():
        raise UserError(f"{path}: there is no such file or folder; name FILE.npz or PNGs' folder")
    return _open_npz(path)


def array_names(path: epath.Path) -> set[str]:
    """The names of the arrays in an npz.

    Raises:
      UserError: the file isn't an npz, or has lost its end.
    """
    with _archive(path) as archive:
        return {name.removesuffix(".npy") for name in archive.namelist()}


@contextlib.contextmanager
def _archive(path: epath.Path) -> Iterator[zipfile.ZipFile]:
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            yield archive
    except zipfile.BadZipFile as error:
        raise UserError(
            f"{path} can't be read as an npz ({error}): it is something else or cut short; "
            f"name another or write it again"
        ) from error


def _open_npz(path: epath.Path) -> ImageSet:
    with _archive(path) as archive:
        names = archive.namelist()
        if f"{ARRAY}.npy" not in names:
            raise UserError(f"{path} has no {ARRAY} but {', '.join(names)}: name images' npz")
        with archive.open(f"{ARRAY}.npy") as file:
            shape, fortran_order, dtype = _read_header(path, file)
            held = archive.getinfo(f"{ARRAY}.npy").file_size - file.tell()
    if dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3) or fortran_order:
        order = " in Fortran order" if fortran_order else ""
        raise UserError(
            f"{path}: {ARRAY} is {dtype} {list(shape)}{order}, but images are uint8 [N, H, W, 3], "
            f"or [N, H, W, 1] for grey: save them so"
        )
    row = int(np.prod(shape[1:]))
    if held != shape[0] * row:
        raise UserError(
            f"{path}: {ARRAY} ends in row {held // max(row, 1)} of {shape[0]}: write it again"
        )
    if not held:
        raise UserError(f"{path}: {ARRAY} has no images: its shape is {list(shape)}")

    def read(rows: int) -> Iterator[np.ndarray]:
        with _archive(path) as archive, archive.open(f"{ARRAY}.npy") as file:
            _read_header(path, file)
            for start in range(0, shape[0], rows):
                end = min(start + rows, shape[0])
                try:
                    data = file.read((end - start) * row)
                except UNREADABLE as error:
                    # Zip files find damage late, by a checksum at the end or in what follows.
                    raise UserError(
                        f"{path}: {ARRAY} is damaged at or before row {end - 1} ({error}): "
                        f"write it again"
                    ) from error
                yield to_rgb(np.frombuffer(data, np.uint8).reshape(end - start, *shape[1:]))

    return ImageSet(path, shape[0], shape[1:3], read)


def _read_header(path: epath.Path, file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    try:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            return np.lib.format.read_array_header_1_0(file)
        return np.lib.format.read_array_header_2_0(file)
    except UNREADABLE as error:
        raise UserError(f"{path}: {ARRAY} is no NumPy array ({error}): write it again") from error


def to_rgb(images: np.ndarray) -> np.ndarray:
    """[B, H, W, 1 or 3] -> [B, H, W, 3]: grey is repeated."""
    return images.repeat(3, axis=-1) if images.shape[-1] == 1 else images


def _open_folder(folder: epath.Path) -> ImageSet:
    names = sorted(path.name for path in folder.iterdir())
    files = [folder / name for name in names if name.endswith(".png") and name != GRID]
    if not files:
        raise UserError(f"{folder} has no PNGs (but for {GRID}, which isn't counted): name another")
    # The headers of all, before hours are spent on the first of them.
    width, height = _open_png(files[0], None)
    for file in files:
        _open_png(file, (width, height))

    def read(rows: int) -> Iterator[np.ndarray]:
        for start in range(0, len(files), rows):
            yield np.stack([read_rgb(file) for file in files[start : start + rows]])

    return ImageSet(folder, len(files), (height, width), read)


def _open_png(path: epath.Path, size: tuple[int, int] | None) -> tuple[int, int]:
    """Width and height; raises a UserError unless they are `size` and the mode is L or RGB."""
    with _opened(path) as image:
        if image.mode not in ("L", "RGB"):
            raise UserError(f"{path} has mode {image.mode}: save 8-bit RGB or grey")
        if size and image.size != size:
            raise UserError(
                f"{path} is {image.size[0]}×{image.size[1]}, the first of its folder "
                f"{size[0]}×{size[1]}: make all one size"
            )
        return image.size


def read_rgb(path: epath.Path, *, upright: bool = False) -> np.ndarray:
    """A picture as uint8 [H, W, 3].

    Args:
      upright: turn it as its EXIF orientation says, which most evaluators don't.

    Raises:
      UserError: the file can't be read as an image.
    """
    with _opened(path) as image:
        turned = ImageOps.exif_transpose(image) if upright else image
        return np.asarray(turned.convert("RGB"))


@contextlib.contextmanager
def _opened(path: epath.Path) -> Iterator[Image.Image]:
    try:
        with path.open("rb") as file, Image.open(file) as image:
            yield image
    except UNREADABLE as error:
        reason = str(error).strip() or repr(error)
        raise UserError(f"{path} can't be read as an image ({reason}): write it again") from error

"""Read images: one file, or batches from an .npz file or a folder of PNGs."""

import contextlib
import dataclasses
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO

import numpy as np
from etils import epath
from PIL import Image

from tp_jax.files.folders import describe_files
from tp_jax.files.jsonl import read_json
from tp_jax.files.pointers import POINTER, check_pointer
from tp_jax.messages.errors import UserError
from tp_jax.messages.progress import say
from tp_jax.pictures.decoding import UnreadableImage, decode_image, transparent

ARRAY = "arr_0"
# Files that tp_jax.sample writes next to the samples. The description names the samples.
GRID, CAPTIONS, DESCRIPTION = "grid.png", "captions.jsonl", "drawing.json"
COMPARISON, ROUTING, THINKING = "comparison.png", "routing.png", "thinking.json"
BESIDE = (GRID, CAPTIONS, COMPARISON, ROUTING, THINKING)
FILES = "files"  # the field of the description
UNREADABLE = (OSError, EOFError, ValueError, SyntaxError, NotImplementedError, zlib.error,
              zipfile.BadZipFile)  # fmt: skip
# Mean and standard deviation of the pixels in ImageNet, 0 to 1, by which many networks normalise.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """A set of images of one size, opened and checked but not yet read.

    Attributes:
      path: the .npz file or the folder.
      count: number of images.
      size: height and width in pixels.
      read: (batch size) -> iterator of uint8 [≤ batch size, H, W, 3]; grey images are converted to
        RGB.
    """

    path: epath.Path
    count: int
    size: tuple[int, int]
    read: Callable[[int], Iterator[np.ndarray]]

    def batches(self, batch_size: int, count: int) -> Iterator[np.ndarray]:
        """Yield the first `count` images in batches, uint8 [≤ batch_size, H, W, 3].

        Raises:
          UserError: a file is damaged; the message names the file and, for an .npz, the row.
        """
        for start, batch in enumerate(self.read(batch_size)):
            if start * batch_size >= count:
                return
            yield batch[: count - start * batch_size]


def open_images(path: epath.Path) -> ImageSet:
    """Open the images in FILE.npz (its array `arr_0`), or the PNGs of a folder, sorted by name.

    Raises:
      UserError: the path doesn't exist, or doesn't hold uint8 images of one size with 1 or 3
        channels.
    """
    if path.is_dir():
        return _open_folder(path)
    if not path.exists():
        raise UserError(
            f"{path}: there is no such file or folder; name an .npz file or a folder of PNGs"
        )
    return _open_npz(path)


def array_names(path: epath.Path) -> set[str]:
    """Return the names of the arrays in an .npz file.

    Raises:
      UserError: the file isn't an .npz file, or is truncated.
    """
    with _archive(path) as archive:
        return {name.removesuffix(".npy") for name in archive.namelist()}


@contextlib.contextmanager
def _archive(path: epath.Path) -> Iterator[zipfile.ZipFile]:
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            yield archive
    except zipfile.BadZipFile as error:
        with path.open("rb") as file:
            check_pointer(path, file.read(len(POINTER)))
        raise UserError(
            f"{path} can't be read as an npz file ({error}): it has another format or is "
            f"truncated; name another file or write it again"
        ) from error


def _open_npz(path: epath.Path) -> ImageSet:
    with _archive(path) as archive:
        names = archive.namelist()
        if f"{ARRAY}.npy" not in names:
            raise UserError(
                f"{path} has no array {ARRAY}, only {', '.join(names)}: name an npz file of images"
            )
        with archive.open(f"{ARRAY}.npy") as file:
            shape, fortran_order, dtype = _read_header(path, file)
            data_size = archive.getinfo(f"{ARRAY}.npy").file_size - file.tell()
    if dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3) or fortran_order:
        order = " in Fortran order" if fortran_order else ""
        raise UserError(
            f"{path}: {ARRAY} is {dtype} {list(shape)}{order}, but images must be saved as uint8 "
            f"[N, H, W, 3], or [N, H, W, 1] if they are grey"
        )
    row_size = int(np.prod(shape[1:]))
    if data_size != shape[0] * row_size:
        last = data_size // max(row_size, 1)
        raise UserError(f"{path}: {ARRAY} ends in row {last} of {shape[0]}: write it again")
    if not data_size:
        raise UserError(f"{path}: {ARRAY} has no images: its shape is {list(shape)}")

    def read(rows: int) -> Iterator[np.ndarray]:
        with _archive(path) as archive, archive.open(f"{ARRAY}.npy") as file:
            _read_header(path, file)
            for start in range(0, shape[0], rows):
                end = min(start + rows, shape[0])
                try:
                    data = file.read((end - start) * row_size)
                except UNREADABLE as error:
                    # zipfile detects damage only at a later read or at the checksum at the end, so
                    # the damaged row may be before this batch.
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
        raise UserError(f"{path}: {ARRAY} isn't a NumPy array ({error}): write it again") from error


def to_rgb(images: np.ndarray) -> np.ndarray:
    """Convert images [B, H, W, 1 or 3] to [B, H, W, 3] by repeating a grey channel."""
    return images.repeat(3, axis=-1) if images.shape[-1] == 1 else images


def _open_folder(folder: epath.Path) -> ImageSet:
    files = choose_samples(folder)
    # Check all headers now, before hours of work on the first images.
    width, height = _check_png(files[0], None)
    for file in files:
        _check_png(file, (width, height))

    def read(rows: int) -> Iterator[np.ndarray]:
        for start in range(0, len(files), rows):
            yield np.stack([read_rgb(file) for file in files[start : start + rows]])

    return ImageSet(folder, len(files), (height, width), read)


def choose_samples(folder: epath.Path) -> list[epath.Path]:
    """Return the PNGs of a folder in the order of their names, and say what is left out.

    If the folder has the description that `tp_jax.sample` writes, these are the files that it
    names.

    Raises:
      UserError: there are no PNGs, one of the described files is missing, or there are several
        descriptions.
    """
    paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    # A copy has a name such as "drawing (1).json".
    descriptions = {
        path.name: read_json(path).get(FILES)
        for path in paths
        if re.fullmatch(r"drawing(\W.*|_?\d*)\.json", path.name)
    }
    lists = [files for files in descriptions.values() if isinstance(files, list)]
    if len(lists) > 1:
        raise UserError(
            f"{folder} has several descriptions ({', '.join(descriptions)}), so it has the samples "
            f"of several requests: put each into a folder of its own"
        )
    described = [str(name) for name in lists[0]] if lists else None
    if described is None:
        files = [path for path in paths if path.suffix.lower() == ".png" and path.name != GRID]
    else:
        found = {path.name for path in paths}
        missing = [name for name in described if name not in found]
        if missing:
            raise UserError(
                f"{folder} lacks {len(missing)} of {len(described)} samples, such as {missing[0]}: "
                f"run the command that makes them again, and it goes on"
            )
        files = [folder / name for name in sorted(described)]
    known = {DESCRIPTION, *BESIDE, *(path.name for path in files)}
    rest = describe_files([path for path in paths if path.name not in known])
    if not files:
        found = f", only {rest}" if rest else f" (not counting {GRID})"
        raise UserError(f"{folder} has no PNGs{found}: name another folder")
    say(f"{folder}: {len(files)} images{'; left out: ' if rest else ''}{rest}")
    return files


def _check_png(path: epath.Path, size: tuple[int, int] | None) -> tuple[int, int]:
    """Return (width, height); raise a UserError if it isn't `size` or the mode isn't L or RGB."""
    try:
        with path.open("rb") as file:
            check_pointer(path, file.read(len(POINTER)))
            with Image.open(file) as image:
                found, mode = image.size, image.mode
                if mode in ("L", "RGB") and transparent(image):
                    mode += " with a transparent colour"
    except (*UNREADABLE, Image.DecompressionBombError) as error:
        raise _unreadable(path, error) from error
    if mode not in ("L", "RGB"):
        raise UserError(f"{path} has mode {mode}: save 8-bit RGB or grey")
    if size and found != size:
        raise UserError(
            f"{path} is {found[0]}×{found[1]}, but the first image of its folder is "
            f"{size[0]}×{size[1]}: all images must have one size"
        )
    return found


def read_rgb(path: epath.Path, *, upright: bool = False) -> np.ndarray:
    """Read an image file as uint8 [H, W, 3], with white behind transparent pixels.

    Args:
      upright: rotate the image by its EXIF orientation, which most evaluators ignore.

    Raises:
      UserError: the file can't be read as an image.
    """
    try:
        return np.asarray(decode_image(path.read_bytes(), upright=upright))
    except (OSError, UnreadableImage) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: epath.Path, error: Exception) -> UserError:
    reason = str(error).strip() or repr(error)
    return UserError(f"{path} can't be read as an image ({reason}): write it again")

"""Transforms that run in the data workers: read, decode, crop and flip."""

import dataclasses
import logging
import math
from collections.abc import Callable
from typing import Any, Protocol

import grain
import numpy as np
from PIL import Image

from tp_jax.data.workers import EndsWithParent
from tp_jax.messages.errors import UserError
from tp_jax.pictures.decoding import BACKGROUND, UnreadableImage, decode_image

# The exceptions of records that can't be read: damaged files, and images that can't be decoded.
DECODE_ERRORS = (OSError, ValueError, RuntimeError, MemoryError)
# Ratio of the sides above which an image is cropped before it is resized.
MAX_ASPECT = 16
# With skip_corrupt, how many records in a row may be unreadable before it is an error.
MAX_CORRUPT_IN_A_ROW = 100


class Records(Protocol):
    """A sequence of records with random access."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


def why_unreadable(name: str, error: Exception) -> str:
    """Return why a record can't be read, from one of `DECODE_ERRORS`, with the record's name."""
    reason = str(error) if isinstance(error, UnreadableImage) else repr(error)
    return f"{name} can't be read: {reason}"


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """Crop the central square and resize it to `size`×`size` pixels, as ADM does.

    The image is halved with a box filter while its smaller side is at least 2·`size`, then resized
    with bicubic interpolation, then cropped. An image that is more than `MAX_ASPECT` times as long
    as it is wide is cropped before it is resized, which bounds the memory; its pixels may then
    differ slightly from ADM's, because Pillow may resize the axes in another order.

    Source: openai/guided-diffusion, `image_datasets.py`, which DiT also uses.

    Example:
      >>> centre_crop(Image.new("RGB", (640, 480)), 64).size
      (64, 64)
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    new_size = round(image.width * scale), round(image.height * scale)
    if max(new_size) > MAX_ASPECT * size:
        return _crop_before_resizing(image, new_size, size)
    image = image.resize(new_size, Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def _crop_before_resizing(image: Image.Image, new_size: tuple[int, int], size: int) -> Image.Image:
    """Resize only the part of an image that the centre crop of the resized image shows.

    Args:
      new_size: width and height of the whole resized image, which is never computed.
      size: side of the centre crop.
    """
    edges = []  # for width and height: the part's edges, and the pixels that the filter reads
    for length, new_length in zip(image.size, new_size, strict=True):
        step = length / new_length
        start = (new_length - size) // 2 * step
        end = min(start + size * step, length)
        support = 2 * max(step, 1) + 1
        low, high = max(math.floor(start - support), 0), min(math.ceil(end + support), length)
        edges.append((low, high, start - low, end - low))
    (left, right, *horizontal), (top, bottom, *vertical) = edges
    part = image.crop((left, top, right, bottom))
    box = (horizontal[0], vertical[0], horizontal[1], vertical[1])
    return part.resize((size, size), Image.Resampling.BICUBIC, box)


def decode_pixels(
    data: bytes | np.ndarray, size: int, channels: int, background: str = BACKGROUND
) -> np.ndarray:
    """Decode an image file to uint8 [size, size, channels], with a centre crop if needed.

    Args:
      data: content of a PNG, JPEG or other image file; or pixels, uint8 [H, W] or [H, W, 3].
      channels: 1 converts to grey, otherwise to RGB.
      background: the colour behind transparent pixels.

    Raises:
      ValueError: the data can't be decoded, or are None.
    """
    if data is None:
        raise ValueError("the record holds no image bytes")
    mode = "L" if channels == 1 else "RGB"
    if isinstance(data, np.ndarray) and data.ndim:
        image = Image.fromarray(data).convert(mode)
    else:
        # TFDS returns the encoded bytes as a NumPy scalar.
        image = decode_image(bytes(data), mode, background)
    if image.size != (size, size):
        image = centre_crop(image, size)
    return np.asarray(image).reshape(size, size, channels)


@dataclasses.dataclass(frozen=True)
class DecodeImage:
    """Decode a record to {"x": [S, S, C] float32 in [-1, 1], "condition": {"label": int32}}.

    Attributes:
      size: side S in pixels.
      channels: C, 1 or 3.
      flip: mirror left to right with probability one half.
      background: the colour behind transparent pixels.
    """

    size: int
    channels: int
    flip: bool
    background: str = BACKGROUND

    def __call__(self, record: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Decode, crop, flip and scale an image."""
        pixels = decode_pixels(record["image"], self.size, self.channels, self.background)
        pixels = pixels.astype(np.float32)
        if self.flip and rng.random() < 0.5:
            pixels = pixels[:, ::-1]
        return {"x": pixels / 127.5 - 1, "condition": self.condition(record, rng)}

    def condition(self, record: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Return the record's condition, here its label."""
        return {"label": np.int32(record["label"])}


# Grain names transforms by their repr, which would hold all records.
@dataclasses.dataclass(frozen=True, repr=False)
class ReadExample(EndsWithParent, grain.transforms.RandomMap):
    """Read and decode the record with a given index.

    Attributes:
      records, decode, record_name, remedy: from the `Source`.
      skip_corrupt: replace a record that can't be read by the next one and log a warning, instead
        of raising an error.
    """

    records: Records
    decode: Callable[[Any, np.random.Generator], dict[str, Any]]
    record_name: Callable[[int], str]
    remedy: str
    skip_corrupt: bool = False
    _skipped: list[str] = dataclasses.field(default_factory=list)

    # Grain annotates this method with `-> None`.
    def random_map(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, index: int, rng: np.random.Generator
    ) -> dict[str, Any]:
        """Return the example of record `index`.

        Raises:
          UserError: the record can't be read; the message names it.
        """
        count, reason = len(self.records), ""
        for at in range(index, index + min(MAX_CORRUPT_IN_A_ROW, count)):
            try:
                return self.decode(self.records[at % count], rng)
            except DECODE_ERRORS as error:
                reason = why_unreadable(self.record_name(at % count), error)
                if not self.skip_corrupt:
                    raise UserError(
                        f"{reason}; {self.remedy}, or skip unreadable records with "
                        f"--config.data.skip_corrupt=true"
                    ) from error
                self._skipped.append(reason)
                logging.warning(
                    "skipped a record, %d in this worker so far: %s", len(self._skipped), reason
                )
        raise UserError(
            f"{MAX_CORRUPT_IN_A_ROW} records in a row can't be read, the last one: {reason}"
        )

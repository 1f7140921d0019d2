"""Reading, decoding and augmentation, done in the workers."""

import dataclasses
import io
import logging
import struct
import zlib
from collections.abc import Callable
from typing import Any, Protocol

import grain
import numpy as np
from PIL import Image

from tp_jax.messages.errors import UserError

# What Pillow and ArrayRecord raise for damaged bytes.
UNREADABLE = (
    OSError, SyntaxError, ValueError, RuntimeError, EOFError, struct.error, zlib.error,
    Image.DecompressionBombError,
)  # fmt: skip
# Of neighbours that take the place of a record that can't be read.
TRIES = 100


class Records(Protocol):
    """Random access to the records of a source."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """ADM's centre crop: halve by box filter while twice too large, bicubic, then crop.

    Source: openai/guided-diffusion, as DiT uses it.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    new_size = round(image.width * scale), round(image.height * scale)
    image = image.resize(new_size, Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def decode_pixels(data: bytes, size: int, channels: int) -> np.ndarray:
    """Encoded image -> uint8 [size, size, channels], cropped where its size differs."""
    if data is None:
        raise ValueError("there are no bytes")
    # TFDS hands the encoded bytes out as a NumPy scalar.
    image = Image.open(io.BytesIO(bytes(data))).convert("L" if channels == 1 else "RGB")
    if image.size != (size, size):
        image = centre_crop(image, size)
    return np.asarray(image).reshape(size, size, channels)


@dataclasses.dataclass(frozen=True)
class DecodeImage:
    """Record -> {"x": [S, S, C] float32 in [-1, 1], "condition": {"label": int32}}.

    Attributes:
      size: side S.
      channels: C, 1 or 3.
      flip: mirror left to right with probability one half.
    """

    size: int
    channels: int
    flip: bool

    def __call__(self, record: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Decodes, crops where the size differs, flips, and scales."""
        pixels = decode_pixels(record["image"], self.size, self.channels).astype(np.float32)
        if self.flip and rng.random() < 0.5:
            pixels = pixels[:, ::-1]
        return {"x": pixels / 127.5 - 1, "condition": self.condition(record, rng)}

    def condition(self, record: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """The record's label."""
        return {"label": np.int32(record["label"])}


@dataclasses.dataclass(frozen=True)
class ReadExample(grain.transforms.RandomMap):
    """Index of a record -> its example.

    Attributes:
      records, decode, record_name, remedy: of the source.
      skip_corrupt: take the next record in place of one that can't be read, and say so.
    """

    records: Records
    decode: Callable[[Any, np.random.Generator], dict[str, Any]]
    record_name: Callable[[int], str]
    remedy: str
    skip_corrupt: bool = False
    _skipped: list[str] = dataclasses.field(default_factory=list)

    # Grain's own method says that it returns nothing.
    def random_map(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, index: int, rng: np.random.Generator
    ) -> dict[str, Any]:
        """Reads and decodes.

        Raises:
          UserError: it can't be read, naming it.
        """
        count, reason = len(self.records), ""
        for at in range(index, index + min(TRIES, count)):
            try:
                return self.decode(self.records[at % count], rng)
            except UNREADABLE as error:
                reason = f"{self.record_name(at % count)} can't be read: {error!r}"
                if not self.skip_corrupt:
                    raise UserError(
                        f"{reason}; {self.remedy}, or skip such with "
                        f"--config.data.skip_corrupt=true"
                    ) from error
                self._skipped.append(reason)
                logging.warning("skipped, %d in this worker so far: %s", len(self._skipped), reason)
        raise UserError(f"{TRIES} records in a row can't be read, the last: {reason}")

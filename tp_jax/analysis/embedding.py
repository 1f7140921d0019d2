"""Fit pictures into the size of a page, and write them as `data:` addresses."""

import base64
import dataclasses
import io

from PIL import Image

# A picture with at most this many colours is a diagram, which 256 of them show well.
_DIAGRAM_COLOURS = 1 << 14
# Further ways to make a picture smaller, in turn: its scale, and the quality of the JPEG.
_SMALLER = ((1.0, 90), (0.75, 85), (0.5, 85), (0.35, 80), (0.25, 75))


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture to embed.

    Attributes:
      data: the file's content.
      kind: "png" or "jpeg".
      width: in pixels.
      height: in pixels.
    """

    data: bytes
    kind: str
    width: int
    height: int

    @property
    def address(self) -> str:
        """The picture as a `data:` address."""
        return f"data:image/{self.kind};base64,{base64.b64encode(self.data).decode()}"


def read(data: bytes) -> Picture | None:
    """Return a PNG as a picture; None if it can't be read."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            return Picture(data, "png", *image.size) if image.format == "PNG" else None
    except (OSError, ValueError, SyntaxError):
        return None


def fit(pictures: dict[str, Picture], total: int) -> dict[str, Picture]:
    """Make pictures smaller until they fit together.

    Small pictures stay as they are. Large ones share the rest equally: diagrams with 256 colours if
    that suffices, others as JPEG and, if needed, with fewer pixels.

    Args:
      pictures: the pictures by name.
      total: bytes that the files may take together.

    Returns:
      The pictures in the same order; those that fit at no size are missing.
    """
    fitted: dict[str, Picture] = {}
    by_size = sorted(pictures, key=lambda name: len(pictures[name].data))
    for i, name in enumerate(by_size):
        share = total // (len(by_size) - i)
        picture = pictures[name]
        smaller = picture if len(picture.data) <= share else _smaller(picture, share)
        if smaller is not None:
            fitted[name] = smaller
            total -= len(smaller.data)
    return {name: fitted[name] for name in pictures if name in fitted}


def _smaller(picture: Picture, limit: int) -> Picture | None:
    """Return the picture in at most `limit` bytes with as little loss as possible, or None."""
    with Image.open(io.BytesIO(picture.data)) as image:
        full = image.convert("RGB")
    if full.getcolors(_DIAGRAM_COLOURS):
        buffer = io.BytesIO()
        full.quantize(256, dither=Image.Dither.NONE).save(buffer, "png", optimize=True)
        if buffer.tell() <= limit:
            return Picture(buffer.getvalue(), "png", *full.size)
    for scale, quality in _SMALLER:
        size = (max(1, round(full.width * scale)), max(1, round(full.height * scale)))
        buffer = io.BytesIO()
        full.resize(size, Image.Resampling.LANCZOS).save(buffer, "jpeg", quality=quality)
        if buffer.tell() <= limit:
            return Picture(buffer.getvalue(), "jpeg", *size)
    return None

"""Pictures under their captions, and rows of frames under their titles."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tp_jax.pictures.grids import make_grid


def make_captioned(
    images: np.ndarray, captions: Sequence[str], right: Sequence[bool], columns: int
) -> np.ndarray:
    """Lays uint8 images [B, H, W, 3] out in rows, each over its caption: green right, red wrong.

    Returns:
      [rows·…, columns·…, 3] uint8.
    """
    cell, size = 160, 12
    zoom = max(1, (cell - 8) // images.shape[2])
    height, width = images.shape[1] * zoom, images.shape[2] * zoom
    cell, line = max(cell, width + 8), size + 3
    font = ImageFont.load_default(size)
    texts = [_wrapped(caption, font, cell - 8) for caption in captions]
    row = height + 8 + line * max(map(len, texts))
    canvas = Image.new("RGB", (columns * cell, -(-len(images) // columns) * row), "white")
    draw = ImageDraw.Draw(canvas)
    for i, (image, lines, good) in enumerate(zip(images, texts, right, strict=True)):
        left, top = (i % columns) * cell + 4, (i // columns) * row + 4
        canvas.paste(Image.fromarray(image).resize((width, height), Image.Resampling.NEAREST),
                     (left, top))  # fmt: skip
        colour = "#0a7a0a" if good else "#c01010"
        draw.rectangle((left - 2, top - 2, left + width + 1, top + height + 1), outline=colour,
                       width=2)  # fmt: skip
        for number, text in enumerate(lines):
            draw.text((left, top + height + 2 + number * line), text, colour, font)
    return np.asarray(canvas)


def make_filmstrips(strips: Sequence[tuple[str, bool, Sequence[np.ndarray]]]) -> Image.Image:
    """Rows of uint8 frames [F, S, S, 3] under a title, green where it is good and red where not.

    Args:
      strips: (title, good, rows), the rows of one strip beneath each other.
    """
    drawn = [[make_grid(row, len(row), min_side=96) for row in rows] for _, _, rows in strips]
    width = max(row.shape[1] for rows in drawn for row in rows)
    line, gap = 16, 6
    height = sum(line + gap + sum(row.shape[0] for row in rows) for rows in drawn)
    canvas = Image.new("RGB", (max(width, 480), height), "white")
    draw, font, top = ImageDraw.Draw(canvas), ImageFont.load_default(12), 0
    for (title, good, _), rows in zip(strips, drawn, strict=True):
        draw.text((4, top + 1), title, "#0a7a0a" if good else "#c01010", font)
        top += line
        for row in rows:
            canvas.paste(Image.fromarray(row), (0, top))
            top += row.shape[0]
        top += gap
    return canvas


def _wrapped(
    text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int
) -> list[str]:
    """The text in lines of at most `width` pixels, as far as its words allow."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines

"""Tables of pictures: one column for each sample, one row for each way to make or explain it."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tp_jax.pictures.experts import expert_colours
from tp_jax.pictures.galleries import wrap_text
from tp_jax.pictures.grids import to_pil

# Experts that a legend names.
_NAMED = 12
_FONT_SIZE, _LINE, _PAD, _TITLE_WIDTH = 13, 17, 6, 150


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a table of pictures.

    Attributes:
      title: the text to the left of the pictures.
      images: uint8 [B, H, W, C], one picture for each column.
    """

    title: str
    images: np.ndarray


def make_table(
    columns: Sequence[str], rows: Sequence[Row], *, experts: int = 0, cell: int = 96
) -> np.ndarray:
    """Draw rows of pictures below the titles of their columns.

    All pictures get the size of the first row's: the largest multiple of it that fits into a cell,
    without interpolation. Pictures larger than a cell are reduced.

    Args:
      columns: the titles of the columns, one for each sample.
      rows: the rows, from the top.
      experts: if given, a legend below the rows has the colours of this many experts.
      cell: width of a picture in pixels, or a little less.

    Returns:
      The table, uint8 [height, width, 3].

    Example:
      >>> digits = np.zeros((2, 8, 8, 1), np.uint8)
      >>> make_table(["3", "5"], [Row("thinking", digits), Row("base", digits)]).shape
      (233, 360, 3)
    """
    width, height = _picture_size(rows[0].images, cell)
    font = ImageFont.load_default(_FONT_SIZE)
    heads = [wrap_text(text, font, width) for text in columns]
    titles = [wrap_text(row.title, font, _TITLE_WIDTH - 2 * _PAD) for row in rows]
    head = _LINE * max(map(len, heads)) + 2 * _PAD
    heights = [max(height, _LINE * len(lines)) + _PAD for lines in titles]
    legend = _LINE + _PAD if experts else 0
    size = (
        _TITLE_WIDTH + len(columns) * (width + _PAD) - _PAD + 2 * _PAD,
        head + sum(heights) + legend,
    )
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)

    def write(lines: list[str], left: int, top: int) -> None:
        for number, text in enumerate(lines):
            draw.text((left, top + number * _LINE), text, "#303030", font)

    lefts = [_TITLE_WIDTH + _PAD + i * (width + _PAD) for i in range(len(columns))]
    for left, lines in zip(lefts, heads, strict=True):
        write(lines, left, _PAD)
    top = head
    for row, lines, step in zip(rows, titles, heights, strict=True):
        write(lines, _PAD, top + max(0, (height - _LINE * len(lines)) // 2))
        for left, image in zip(lefts, row.images, strict=True):
            canvas.paste(_resized(image, width, height), (left, top))
        top += step
    if experts:
        _draw_legend(draw, font, experts, top)
    return np.asarray(canvas)


def picked(count: int, limit: int, first: int = 0) -> list[int]:
    """Return at most `limit` of `count` successive integers, evenly spaced from first to last.

    Args:
      count: number of integers to choose from.
      limit: number of integers to return; 1 returns the last one.
      first: the first of the integers to choose from.

    Example:
      >>> picked(5, 3), picked(2, 3), picked(5, 3, first=1)
      ([0, 2, 4], [0, 1], [1, 3, 5])
    """
    last = first + count - 1
    if limit == 1:
        return [last]
    return [round(number) for number in np.linspace(first, last, min(count, limit))]


def _picture_size(images: np.ndarray, cell: int) -> tuple[int, int]:
    """Return the width and height of the pictures of a table."""
    height, width = images.shape[1:3]
    if width <= cell:
        zoom = cell // width
        return width * zoom, height * zoom
    return cell, max(1, round(height * cell / width))


def _resized(image: np.ndarray, width: int, height: int) -> Image.Image:
    picture = to_pil(image)
    reduced = picture.width > width
    how = Image.Resampling.BOX if reduced else Image.Resampling.NEAREST
    return picture.resize((width, height), how)


def _draw_legend(
    draw: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    experts: int,
    top: int,
) -> None:
    """Draw a square of the colour of each expert, with its number."""
    left = _TITLE_WIDTH + _PAD
    draw.text((_PAD, top), "expert of each token", "#303030", font)
    for expert, colour in enumerate(expert_colours(experts)[:_NAMED]):
        draw.rectangle((left, top + 2, left + 11, top + 13), fill=tuple(colour.tolist()))
        name = f"{expert}"
        draw.text((left + 16, top), name, "#303030", font)
        left += 16 + int(font.getlength(name)) + 14
    if experts > _NAMED:
        draw.text((left, top), f"… {experts - 1}", "#303030", font)

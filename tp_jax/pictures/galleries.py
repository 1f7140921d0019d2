"""Galleries: images with captions, and rows of frames with titles."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tp_jax.pictures.grids import make_grid, to_pil


def make_captioned_grid(
    images: np.ndarray,
    captions: Sequence[str],
    *,
    correct: Sequence[bool] | None = None,
    columns: int = 0,
    cell: int = 160,
) -> np.ndarray:
    """Lay images out in a grid with a caption below each.

    Args:
      images: uint8 [B, H, W, C] with C of 1 or 3. Those smaller than a cell are enlarged by an
        integer factor, without interpolation.
      captions: one for each image.
      correct: if given, captions and frames are green where it is true and red where it isn't.
      columns: number of images in a row; 0 makes the grid about square.
      cell: smallest width of a column in pixels.

    Returns:
      The gallery, uint8 [height, width, 3].
    """
    size, columns = 12, columns or int(np.ceil(np.sqrt(len(images))))
    zoom = max(1, (cell - 8) // images.shape[2])
    height, width = images.shape[1] * zoom, images.shape[2] * zoom
    cell, line = max(cell, width + 8), size + 3
    font = ImageFont.load_default(size)
    texts = [wrap_text(caption, font, cell - 8) for caption in captions]
    row = height + 8 + line * max(map(len, texts), default=0)
    canvas = Image.new("RGB", (columns * cell, -(-len(images) // columns) * row), "white")
    draw = ImageDraw.Draw(canvas)
    for i, (image, lines) in enumerate(zip(images, texts, strict=True)):
        left, top = (i % columns) * cell + 4, (i // columns) * row + 4
        enlarged = to_pil(image).resize((width, height), Image.Resampling.NEAREST)
        canvas.paste(enlarged, (left, top))
        colour = "#303030"
        if correct is not None:
            colour = "#0a7a0a" if correct[i] else "#c01010"
            frame = (left - 2, top - 2, left + width + 1, top + height + 1)
            draw.rectangle(frame, outline=colour, width=2)
        for number, text in enumerate(lines):
            draw.text((left, top + height + 2 + number * line), text, colour, font)
    return np.asarray(canvas)


# Classes that a grid shows in columns of their own.
MAX_COLUMNS = 20
# Width in pixels of a grid of small images, as far as the widths of its cells allow it.
GRID_WIDTH, SMALLEST_CELL, LARGEST_CELL = 1100, 72, 136


def make_class_grid(
    images: np.ndarray, labels: Sequence[int], names: Sequence[str] = ()
) -> np.ndarray:
    """Lay images out in a grid, each with the name of its class.

    If the labels cycle through at most `MAX_COLUMNS` classes, each column has one class.

    Args:
      images: uint8 [B, H, W, C] with C of 1 or 3.
      labels: the label of each image.
      names: names of the classes, in the order of the labels; if empty, the labels are shown.

    Returns:
      The grid, uint8 [height, width, 3].

    Example:
      >>> make_class_grid(np.zeros((6, 8, 8, 1), np.uint8), [3, 5, 3, 5, 3, 5]).shape
      (453, 272, 3)
    """
    period = len(set(labels))
    cycled = all(label == labels[i % period] for i, label in enumerate(labels))
    columns = int(np.ceil(np.sqrt(len(images))))
    if cycled and 1 < period <= MAX_COLUMNS:
        # As many cycles in a row as make the grid about square.
        columns = period * max(1, round(np.sqrt(len(labels)) / period))
    cell = int(np.clip(GRID_WIDTH // columns, SMALLEST_CELL, LARGEST_CELL))
    captions = [class_caption(label, names) for label in labels]
    return make_captioned_grid(images, captions, columns=columns, cell=cell)


def class_caption(label: int, names: Sequence[str]) -> str:
    """Return the name of a class; its number if there is no name.

    Example:
      >>> class_caption(1, ["cat", "dog"]), class_caption(7, ["cat", "dog"])
      ('dog', 'class 7')
    """
    return names[label] if 0 <= label < len(names) else f"class {label}"


def make_filmstrips(strips: Sequence[tuple[str, bool, Sequence[np.ndarray]]]) -> Image.Image:
    """Draw filmstrips one below the other, each with a title above its rows of frames.

    Args:
      strips: (title, good, rows) for each filmstrip. The title is green if `good`, otherwise red.
        A row is an array of frames, uint8 [F, S, S, 3].
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


def wrap_text(
    text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int
) -> list[str]:
    """Split a text into lines of at most `width` pixels; only longer words are split themselves."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        lines.append("")
        for character in word:
            if lines[-1] and font.getlength(lines[-1] + character) > width:
                lines.append("")
            lines[-1] += character
    return lines

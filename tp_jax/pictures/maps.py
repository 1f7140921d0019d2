"""Rows of samples, and maps of the experts of their tokens beside them.

S sampler steps, T latent steps, B samples, N vision tokens, M experts.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tp_jax.pictures.experts import paint_experts
from tp_jax.pictures.grids import make_grid, to_pil
from tp_jax.pictures.reading import to_rgb
from tp_jax.pictures.tables import picked

# Sides in pixels of a picture or map, of the gap between them, and of a line of text.
CELL, GAP, LINE = 72, 4, 14
# Sampler steps and latent steps that have a map.
MAP_STEPS, MAP_LATENT_STEPS = 3, 4


def routing_maps(
    images: np.ndarray,
    experts: np.ndarray,
    timesteps: np.ndarray,
    grid: tuple[int, int],
    count: int,
) -> np.ndarray:
    """Draw a row for each sample: its picture, then maps of its experts.

    There is a map for each of up to `MAP_STEPS` sampler steps and `MAP_LATENT_STEPS` latent steps.

    Args:
      images: uint8 [B, H, W, C].
      experts: [S, T, B, N] integers.
      timesteps: [S].
      grid: rows and columns of the tokens.
      count: number M of experts.

    Returns:
      uint8 [height, width, 3].
    """
    chosen = [
        (step, latent_step)
        for step in picked(len(experts), MAP_STEPS)
        for latent_step in picked(experts.shape[1], MAP_LATENT_STEPS)
    ]
    font, pitch = ImageFont.load_default(11), CELL + GAP
    size = (pitch * (1 + len(chosen)) + GAP, 2 * LINE + pitch * len(images) + GAP)
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    for column, (step, latent_step) in enumerate(chosen, 1):
        left = GAP + pitch * column
        draw.text((left, 1), f"time {timesteps[step]:.0f}", "#303030", font)
        draw.text((left, LINE), f"latent step {latent_step + 1}", "#303030", font)
    for row, image in enumerate(small_rgb(images)):
        top = 2 * LINE + GAP + pitch * row
        cells = [image]
        cells += [paint_experts(experts[s, t, row][None], grid, count)[0] for s, t in chosen]
        for column, cell in enumerate(cells):
            enlarged = to_pil(cell).resize(_fit(cell.shape[:2]), Image.Resampling.NEAREST)
            canvas.paste(enlarged, (GAP + pitch * column, top))
    return np.asarray(canvas)


def _fit(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return width and height of a picture that fits into a cell, with its proportions."""
    height, width = shape
    factor = CELL / max(height, width)
    return max(1, round(width * factor)), max(1, round(height * factor))


def small_rgb(images: np.ndarray) -> np.ndarray:
    """Return images as RGB, at most `CELL` pixels wide and high, which bounds a report's size.

    Args:
      images: uint8 [B, H, W, C]; of more than three channels, as latents have, three are shown.
    """
    images = to_rgb(images)[..., :3]
    if max(images.shape[1:3]) <= CELL:
        return images
    size = _fit(images.shape[1:3])
    shrunk = (to_pil(image).resize(size, Image.Resampling.LANCZOS) for image in images)
    return np.stack([np.asarray(image) for image in shrunk])


def rows_of_images(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Lay rows of images out below each other, enlarged so that single pixels are seen.

    Args:
      rows: each uint8 [B, H, W, C], of the same shape.
    """
    return make_grid(small_rgb(np.concatenate(rows)), len(rows[0]), min_side=96)


def stacked(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Lay pictures of any width out below each other, on white.

    Args:
      pictures: each uint8 [H, W, 3].
    """
    width = max(picture.shape[1] for picture in pictures)
    padded = [
        np.pad(picture, ((0, GAP), (0, width - picture.shape[1]), (0, 0)), constant_values=255)
        for picture in pictures
    ]
    return np.concatenate(padded)

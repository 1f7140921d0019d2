"""Model outputs to uint8 images, image grids, and PNG files."""

import io

import numpy as np
from etils import epath
from PIL import Image

from tp_jax.files.atomic import write_bytes
from tp_jax.files.finite import check_finite


def to_uint8(x: np.ndarray, first: int = 0) -> np.ndarray:
    """Convert floats in [-1, 1] to uint8: 127.5·x + 128, clipped to [0, 255] and truncated.

    Source: facebookresearch/DiT, `sample_ddp.py`.

    Args:
      x: samples, float [B, …].
      first: number of the first sample, for the error message.

    Raises:
      NotFiniteError: a sample has NaN or infinity, which would become black or white pixels.

    Example:
      >>> to_uint8(np.array([-1.0, 0.0, 1.0, 7.0])).tolist()
      [0, 128, 255, 255]
    """
    x = np.asarray(x, np.float32)
    for i, sample in enumerate(x):
        check_finite(
            f"sample {first + i}",
            np.asarray(sample),
            "the model or its decoder gives no valid images; use another --checkpoint, "
            "--dtype=float32 or a smaller guidance scale",
        )
    return np.clip(127.5 * x + 128, 0, 255).astype(np.uint8)


def mean_difference(images: np.ndarray, reference: np.ndarray) -> float:
    """Return the mean absolute difference of uint8 images, in grey levels from 0 to 255.

    Example:
      >>> mean_difference(np.array([0, 250], np.uint8), np.array([10, 230], np.uint8))
      15.0
    """
    return float(np.abs(images.astype(np.int16) - reference).mean())


# Differences of this many grey levels or more are black in `picture_differences`.
BLACK_DIFFERENCE = 32


def picture_differences(images: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return pictures of where uint8 images differ: white where equal, darker where they differ.

    Args:
      images, reference: uint8 [B, H, W, C].

    Returns:
      uint8 [B, H, W, C]; black where a channel differs by `BLACK_DIFFERENCE` grey levels or more.

    Example:
      >>> picture_differences(np.array([0, 8, 250], np.uint8), np.zeros(3, np.uint8)).tolist()
      [255, 192, 0]
    """
    difference = np.abs(images.astype(np.int16) - reference)
    shade = np.minimum(difference / BLACK_DIFFERENCE, 1)
    return np.ceil(255 * (1 - shade)).astype(np.uint8)


def to_pil(image: np.ndarray) -> Image.Image:
    """Convert a uint8 [H, W, C] array to a Pillow image, grey for C = 1 and RGB for C = 3.

    If C > 3, as for latents, the first three channels are shown as RGB.

    Example:
      >>> to_pil(np.zeros((4, 6, 16), np.uint8)).mode
      'RGB'
    """
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image[..., :3])


def make_grid(images: np.ndarray, columns: int = 0, pad: int = 2, min_side: int = 32) -> np.ndarray:
    """Lay images out in a grid, row by row.

    Args:
      images: uint8 [B, H, W, C].
      columns: number of images in a row; 0 makes the grid about square.
      pad: width in pixels of the light grey gap around the images.
      min_side: images smaller than this are enlarged by the largest integer factor that keeps
        their height at or below it, without interpolation.

    Returns:
      The grid, uint8 [height, width, C].

    Example:
      >>> images = np.zeros((6, 8, 8, 3), np.uint8)
      >>> make_grid(images, columns=3, min_side=16).shape  # 2 rows of 3, each image 16×16
      (38, 56, 3)
    """
    zoom = max(1, min_side // images.shape[1])
    images = images.repeat(zoom, axis=1).repeat(zoom, axis=2)
    count, height, width, channels = images.shape
    columns = columns or int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    shape = (rows * (height + pad) + pad, columns * (width + pad) + pad, channels)
    grid = np.full(shape, 220, np.uint8)
    for i, image in enumerate(images):
        top, left = (height + pad) * (i // columns) + pad, (width + pad) * (i % columns) + pad
        grid[top : top + height, left : left + width] = image
    return grid


def is_whole_png(path: epath.Path) -> bool:
    """Return whether a PNG exists and is undamaged; remote ones aren't read, to save time."""
    if "://" in str(path) or not path.exists():
        return path.exists()
    try:
        with path.open("rb") as file, Image.open(file) as image:
            image.verify()
    except (OSError, ValueError, SyntaxError):
        return False
    return True


def save_png(path: epath.Path, image: np.ndarray) -> None:
    """Write a uint8 [H, W, C] image atomically, and create its folder if needed."""
    buffer = io.BytesIO()
    to_pil(image).save(buffer, format="png")
    write_bytes(path, buffer.getvalue())

"""Model outputs as uint8 pictures, grids of them, and PNG files."""

import io

import numpy as np
from etils import epath
from PIL import Image

from tp_jax.files.atomic import write_bytes


def to_uint8(x: np.ndarray) -> np.ndarray:
    """[-1, 1] floats to uint8 as DiT does: 127.5·x + 128, clipped, truncated."""
    return np.clip(127.5 * np.asarray(x, np.float32) + 128, 0, 255).astype(np.uint8)


def to_pil(image: np.ndarray) -> Image.Image:
    """One uint8 [H, W, C] image; 1 channel is grey, 3 are RGB.

    Of latents, with more channels, the first three are shown in false colours.
    """
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image[..., :3])


def make_grid(images: np.ndarray, columns: int = 0, pad: int = 2, min_side: int = 32) -> np.ndarray:
    """Lays uint8 images [B, H, W, C] out in rows, in order.

    Args:
      columns: 0 makes the grid about square.
      pad: light grey pixels between the pictures.
      min_side: smaller images are enlarged to about this many pixels a side, sharply.

    Returns:
      [rows·…, columns·…, C] uint8.
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


def save_png(path: epath.Path, image: np.ndarray) -> None:
    """Writes one uint8 [H, W, C] image whole or not at all; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    to_pil(image).save(buffer, format="png")
    write_bytes(path, buffer.getvalue())

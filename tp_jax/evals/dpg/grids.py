"""DPG-Bench's image grids: the four samples of a prompt in one picture."""

import numpy as np
from etils import epath

from tp_jax.evals.dpg.score import TILES
from tp_jax.evals.prompt import Prompt


def image_path(out: epath.Path, prompt: Prompt) -> epath.Path:
    """Return the path where the official scorer expects the image grid of a prompt."""
    return out / f"{prompt.name}.png"


def join_tiles(images: np.ndarray) -> np.ndarray:
    """Arrange four images [4, H, W, 3] in a 2×2 grid [2H, 2W, 3], row by row, without a border.

    Raises:
      ValueError: there aren't four images.

    Example:
      >>> join_tiles(np.arange(4).reshape(4, 1, 1, 1))[..., 0].tolist()
      [[0, 1], [2, 3]]
    """
    count, height, width, channels = images.shape
    if count != TILES:
        raise ValueError(f"a grid needs {TILES} images, got {count}")
    rows = images.reshape(2, 2, height, width, channels).transpose(0, 2, 1, 3, 4)
    return rows.reshape(2 * height, 2 * width, channels)


def split_tiles(image: np.ndarray) -> np.ndarray:
    """Split a 2×2 grid [2H, 2W, 3] into its four images [4, H, W, 3].

    Example:
      >>> split_tiles(np.array([[0, 1], [2, 3]])[..., None]).ravel().tolist()
      [0, 1, 2, 3]
    """
    height, width, channels = image.shape
    cells = image.reshape(2, height // 2, 2, width // 2, channels).transpose(0, 2, 1, 3, 4)
    return cells.reshape(TILES, height // 2, width // 2, channels)

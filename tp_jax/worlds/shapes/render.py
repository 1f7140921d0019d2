"""Pictures of scenes, antialiased: every pixel holds how much of it an object covers.

S pixels a side.
"""

import numpy as np

from tp_jax.worlds.shapes.scenes import COLOURS, Object, Scene

# Half-widths of a cross's bars and of a ring's hole, in units of the size.
BAR, HOLE = 0.34, 0.5


def coverage(shape: str, x: float, y: float, size: float, side: int) -> np.ndarray:
    """How much of each pixel the shape covers, [S, S] float64 in [0, 1].

    Args:
      x, y, size: as in `Object`, in units of the picture's side.
    """
    centres = (np.arange(side) + 0.5) / side
    dx, dy = (centres - x)[None, :] / size, (centres - y)[:, None] / size
    # Distance to the edge in pixels, below 0 inside; half of a pixel on it is covered.
    return np.clip(0.5 - _distance(shape, dx, dy) * size * side, 0, 1)


def _distance(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Signed distance to the edge of a shape of size 1, about right outside of corners."""
    if shape == "circle":
        return np.hypot(x, y) - 1
    if shape == "ring":
        return np.abs(np.hypot(x, y) - (1 + HOLE) / 2) - (1 - HOLE) / 2
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 1
    if shape == "cross":
        upright = np.maximum(np.abs(x) - BAR, np.abs(y) - 1)
        level = np.maximum(np.abs(x) - 1, np.abs(y) - BAR)
        return np.minimum(upright, level)
    # A triangle with its tip up: the base, and two sides that fall 2 for each 1.
    return np.maximum(y - 1, (2 * np.abs(x) - y - 1) / np.sqrt(5))


# Over the squared size, and how far below the middle of the bounding square the centroid lies.
AREAS = {
    "circle": np.pi,
    "ring": np.pi * (1 - HOLE**2),
    "square": 4.0,
    "cross": 4 * (2 * BAR - BAR**2),
    "triangle": 2.0,
}
CENTROIDS = dict.fromkeys(AREAS, 0.0) | {"triangle": 1 / 3}


def draw_object(picture: np.ndarray, thing: Object, light: float) -> np.ndarray:
    """The picture [S, S, 3] with the object over it."""
    alpha = coverage(thing.shape, thing.x, thing.y, thing.size, len(picture))[..., None]
    colour = np.minimum(np.array(COLOURS[thing.colour]) * light, 1)
    return picture + alpha * (colour - picture)


def render(scene: Scene, side: int) -> np.ndarray:
    """A picture [S, S, 3] float32 in [0, 1]."""
    across = (np.arange(side) + 0.5) / side
    ramp = np.stack([1 - across, across])
    grey = ramp.T @ np.array(scene.background) @ ramp
    picture = grey[..., None] + np.array(scene.tint)
    for thing in scene.objects:
        picture = draw_object(picture, thing, scene.light)
    return picture.astype(np.float32)

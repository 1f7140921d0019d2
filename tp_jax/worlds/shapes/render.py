"""Render scenes as antialiased images of S×S pixels."""

import numpy as np

from tp_jax.worlds.shapes.scenes import COLOURS, Object, Scene

# Half the width of a cross's bars, and the radius of a ring's hole, in units of `Object.size`.
BAR, HOLE = 0.34, 0.5


def coverage(shape: str, x: float, y: float, size: float, side: int) -> np.ndarray:
    """Return the share of each pixel that a shape covers, float64 [S, S] in [0, 1].

    Args:
      x, y, size: as in `Object`, in units of the image's side.
      side: S in pixels.
    """
    centres = (np.arange(side) + 0.5) / side
    dx, dy = (centres - x)[None, :] / size, (centres - y)[:, None] / size
    # The distance to the edge is in pixels and negative inside; at the edge, coverage is 0.5.
    return np.clip(0.5 - _distance(shape, dx, dy) * size * side, 0, 1)


def _distance(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the signed distance to the edge of a shape of size 1, approximate near corners."""
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
    # A triangle with its tip up: the base, and two sides with slope 2.
    return np.maximum(y - 1, (2 * np.abs(x) - y - 1) / np.sqrt(5))


# Area of a shape of size 1.
AREAS = {
    "circle": np.pi,
    "ring": np.pi * (1 - HOLE**2),
    "square": 4.0,
    "cross": 4 * (2 * BAR - BAR**2),
    "triangle": 2.0,
}
# How far the centroid of a shape of size 1 is below the centre of its bounding square.
CENTROIDS = dict.fromkeys(AREAS, 0.0) | {"triangle": 1 / 3}


def draw_object(picture: np.ndarray, thing: Object, light: float) -> np.ndarray:
    """Return an image [S, S, 3] with an object drawn over it.

    Args:
      light: brightness factor, as in `Scene`.
    """
    alpha = coverage(thing.shape, thing.x, thing.y, thing.size, len(picture))[..., None]
    colour = np.minimum(np.array(COLOURS[thing.colour]) * light, 1)
    return picture + alpha * (colour - picture)


def render(scene: Scene, side: int) -> np.ndarray:
    """Render a scene as float32 [S, S, 3] in [0, 1].

    Example:
      >>> from tp_jax.worlds.shapes.scenes import training_scene
      >>> scene = training_scene(7)
      >>> scene.caption, render(scene, side=64).shape
      ('a circle above a square', (64, 64, 3))
    """
    across = (np.arange(side) + 0.5) / side
    ramp = np.stack([1 - across, across])
    grey = ramp.T @ np.array(scene.background) @ ramp
    picture = grey[..., None] + np.array(scene.tint)
    for thing in scene.objects:
        picture = draw_object(picture, thing, scene.light)
    return picture.astype(np.float32)

"""Detect the objects in an image of shapes from its pixels.

Backgrounds are grey and objects are coloured, so an object is a connected region of one hue, a
blob. Its shape is the one whose rendering overlaps the blob best (analysis by synthesis). Images
are S×S pixels.
"""

import dataclasses
import functools
import itertools
from typing import cast

import numpy as np
from scipy import ndimage

from tp_jax.worlds.shapes.render import AREAS, CENTROIDS, coverage
from tp_jax.worlds.shapes.scenes import COLOURS, SHAPES, Object

# A pixel is coloured if its distance to grey is larger than this. The palest colour has distance
# 0.37, and a background's tint at most 0.04.
MIN_CHROMA = 0.16
# A blob that covers a smaller share of the image than this is ignored; the smallest shape covers
# 0.04.
MIN_AREA = 0.006
# Minimum intersection over union of a blob and the rendering of its shape. The best fit decides
# which shape a blob is; this threshold only rejects blobs that a person wouldn't call any of them.
MIN_FIT = 0.65
# Standard deviations of Gaussian filters, in pixels of a 64×64 image: for the image before hues are
# compared, and for the templates.
SMOOTHING, TEMPLATE_BLURS = 0.7, (0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class Found:
    """A detected object.

    Attributes:
      shape, colour, x, y, size: as in `Object`; `shape` is "" if the blob matches no shape.
      fit: intersection over union of the blob and the best shape, in [0, 1].
    """

    shape: str
    colour: str
    x: float
    y: float
    size: float
    fit: float

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Bounding box (left, top, right, bottom), in units of the image's side."""
        return (self.x - self.size, self.y - self.size, self.x + self.size, self.y + self.size)


def _hue_vectors(pixels: np.ndarray) -> np.ndarray:
    """Subtract the grey part, which is the mean over the channels, from colours [..., 3]."""
    return pixels - pixels.mean(-1, keepdims=True)


_NAMES = tuple(COLOURS)
_HUES = _hue_vectors(np.array(list(COLOURS.values())))
_HUES = _HUES / np.linalg.norm(_HUES, axis=-1, keepdims=True)


def find_objects(picture: np.ndarray) -> list[Found]:
    """Detect the objects of an image.

    Args:
      picture: [S, S, 3], uint8 or float in [0, 1].

    Returns:
      The objects from left to right.

    Example:
      >>> from tp_jax.worlds.shapes.render import render
      >>> from tp_jax.worlds.shapes.scenes import training_scene
      >>> [(found.shape, found.colour) for found in find_objects(render(training_scene(7), 64))]
      [('square', 'pink'), ('circle', 'green')]
    """
    pixels = picture / 255 if picture.dtype == np.uint8 else np.clip(picture, 0, 1)
    side = len(pixels)
    sigma = SMOOTHING * side / 64
    chroma = _hue_vectors(pixels.astype(np.float64))
    smooth = ndimage.gaussian_filter(chroma, (sigma, sigma, 0))
    coloured = np.linalg.norm(smooth, axis=-1) > MIN_CHROMA
    nearest = (smooth @ _HUES.T).argmax(-1)

    blobs = np.zeros((side, side), int)
    for colour in range(len(_NAMES)):
        labelled = ndimage.label(coloured & (nearest == colour))
        found, _ = cast(tuple[np.ndarray, int], labelled)
        blobs = np.where(found, found + blobs.max(), blobs)
    objects = []
    for label, window in enumerate(ndimage.find_objects(blobs), 1):
        blob = blobs[window] == label
        if blob.sum() >= MIN_AREA * side**2:
            objects.append(_recognise(chroma, blobs, label, window, side))
    return sorted(objects, key=lambda found: found.x)


def _recognise(
    chroma: np.ndarray, blobs: np.ndarray, label: int, window: tuple[slice, ...], side: int
) -> Found:
    margin = 2 + side // 32
    rows, columns = (
        slice(max(0, part.start - margin), min(side, part.stop + margin)) for part in window
    )
    inside = blobs[rows, columns] == label
    others = (blobs[rows, columns] > 0) & ~inside
    near = chroma[rows, columns]
    strength = np.linalg.norm(near, axis=-1)
    core = inside & (strength >= np.median(strength[inside]))
    colour = np.median(near[core], axis=0)
    alpha = np.clip(near @ colour / (colour @ colour), 0, 1)
    # Away from the blob, background noise must not count as coverage.
    far = np.logical_not(ndimage.binary_dilation(inside, iterations=2))
    alpha = np.where(others | far, 0, alpha)

    best = max(
        (_fit(shape, alpha, (rows, columns), side) for shape in SHAPES), key=lambda found: found[0]
    )
    fit, shape, x, y, size = best
    name = _NAMES[(_HUES @ colour).argmax()]
    return Found(shape if fit >= MIN_FIT else "", name, x, y, size, fit)


def _fit(
    shape: str, alpha: np.ndarray, window: tuple[slice, slice], side: int
) -> tuple[float, str, float, float, float]:
    """Fit the position and size of a shape's rendering to a blob by coordinate ascent.

    Args:
      alpha: coverage of each pixel by the blob, in [0, 1].
      window: rows and columns of the image that `alpha` holds.
      side: S.

    Returns:
      (intersection over union, shape, x, y, size) of the best rendering.
    """
    area = alpha.sum()
    places = [(np.arange(part.start, part.stop) + 0.5) / side for part in window]
    x = float(alpha.sum(0) @ places[1] / area)
    y = float(alpha.sum(1) @ places[0] / area)
    size = float(np.sqrt(area / AREAS[shape])) / side
    blur = functools.partial(ndimage.gaussian_filter, mode="constant")

    def share(place: tuple[float, float, float], sigma: float) -> float:
        template = coverage(shape, *place, side)[window]
        template = blur(template, sigma * side / 64) if sigma else template
        return np.minimum(alpha, template).sum() / np.maximum(alpha, template).sum()

    place = (x, y - CENTROIDS[shape] * size, size)
    score, sigma = max((share(place, sigma), sigma) for sigma in TEMPLATE_BLURS)
    for step in (1.0, 0.5, 0.25):
        for axis, sign in itertools.product(range(3), (-1, 1)):
            while True:
                shifted = list(place)
                shifted[axis] += sign * step / side
                moved = shifted[0], shifted[1], shifted[2]
                if moved[2] <= 0 or (better := share(moved, sigma)) <= score:
                    break
                place, score = moved, better
    return (score, shape, *place)


def same_contents(found: list[Found], objects: tuple[Object, ...], tolerance: float) -> bool:
    """Return whether exactly these objects were found, with the same shapes, colours and positions.

    Args:
      tolerance: maximum difference of a coordinate, in units of the image's side.
    """
    left = list(objects)
    for one in found:
        match = [
            other
            for other in left
            if (other.shape, other.colour) == (one.shape, one.colour)
            and max(abs(other.x - one.x), abs(other.y - one.y)) <= tolerance
        ]
        if not match:
            return False
        left.remove(match[0])
    return not left

"""What is in a picture of shapes, from its pixels alone: analysis by synthesis.

Backgrounds are grey and objects are coloured, so an object is a blob of one hue; its shape is
that whose rendering covers the blob best. S pixels a side.
"""

import dataclasses
import functools
import itertools
from typing import cast

import numpy as np
from scipy import ndimage

from tp_jax.worlds.shapes.render import AREAS, CENTROIDS, coverage
from tp_jax.worlds.shapes.scenes import COLOURS, SHAPES, Object

# Of the distance to grey; the palest colour has 0.37, and a background's tint up to 0.04.
CHROMA = 0.16
# Blobs below this share of the picture aren't objects; the smallest shape has 0.04.
BLEMISH = 0.006
# Least share that a blob and the shape it is taken for have in common, of what they cover
# together: which shape it is is decided by which fits best, so that this only leaves out what a
# person wouldn't call any of them.
LEAST_FIT = 0.65
# Pixels of 64 that pictures are smoothed by before hues are told apart, and that templates may
# be blurred by.
SMOOTH, BLURS = 0.7, (0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class Found:
    """An object found; `shape` is "" for a blob that is none of the shapes.

    Attributes:
      fit: share in [0, 1] that blob and shape have in common.
    """

    shape: str
    colour: str
    x: float
    y: float
    size: float
    fit: float

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom, in units of the picture's side."""
        return (self.x - self.size, self.y - self.size, self.x + self.size, self.y + self.size)


def _hue_vectors(pixels: np.ndarray) -> np.ndarray:
    """Colours [..., 3] without their grey."""
    return pixels - pixels.mean(-1, keepdims=True)


_NAMES = tuple(COLOURS)
_HUES = _hue_vectors(np.array(list(COLOURS.values())))
_HUES = _HUES / np.linalg.norm(_HUES, axis=-1, keepdims=True)


def find_objects(picture: np.ndarray) -> list[Found]:
    """The objects of a picture, from left to right.

    Args:
      picture: [S, S, 3], uint8 or float in [0, 1].
    """
    pixels = picture / 255 if picture.dtype == np.uint8 else np.clip(picture, 0, 1)
    side = len(pixels)
    sigma = SMOOTH * side / 64
    chroma = _hue_vectors(pixels.astype(np.float64))
    smooth = ndimage.gaussian_filter(chroma, (sigma, sigma, 0))
    coloured = np.linalg.norm(smooth, axis=-1) > CHROMA
    nearest = (smooth @ _HUES.T).argmax(-1)

    blobs = np.zeros((side, side), int)
    for colour in range(len(_NAMES)):
        labelled = ndimage.label(coloured & (nearest == colour))
        found, _ = cast(tuple[np.ndarray, int], labelled)
        blobs = np.where(found, found + blobs.max(), blobs)
    objects = []
    for label, window in enumerate(ndimage.find_objects(blobs), 1):
        blob = blobs[window] == label
        if blob.sum() >= BLEMISH * side**2:
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
    # What noise leaves of the background isn't covered.
    far = np.logical_not(ndimage.binary_dilation(inside, iterations=2))
    alpha = np.where(others | far, 0, alpha)

    best = max(
        (_fit(shape, alpha, (rows, columns), side) for shape in SHAPES), key=lambda found: found[0]
    )
    fit, shape, x, y, size = best
    name = _NAMES[(_HUES @ colour).argmax()]
    return Found(shape if fit >= LEAST_FIT else "", name, x, y, size, fit)


def _fit(
    shape: str, alpha: np.ndarray, window: tuple[slice, slice], side: int
) -> tuple[float, str, float, float, float]:
    """(share in common, shape, x, y, size) of the best rendering of a shape."""
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
    score, sigma = max((share(place, sigma), sigma) for sigma in BLURS)
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
    """Whether exactly these objects were found: shape, colour and, within a tolerance, place.

    Args:
      tolerance: in units of the picture's side.
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

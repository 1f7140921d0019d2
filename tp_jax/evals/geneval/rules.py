"""GenEval's rules: decide from detected objects whether an image shows what its prompt asks for.

Source: djghosh13/geneval, `evaluation/evaluate_images.py` (Ghosh et al. 2023, arXiv:2310.11513).
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np

THRESHOLD = 0.3  # minimum detection score
COUNTING_THRESHOLD = 0.9  # for the tag "counting", where one false detection spoils the count
MAX_OBJECTS = 16  # per class
POSITION_MARGIN = 0.1  # dead zone around the centre, as a fraction of the summed box sizes
RELATIONS = ("left of", "right of", "above", "below")
COLOURS = ("red", "orange", "yellow", "green", "blue",
           "purple", "pink", "brown", "black", "white")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Detection:
    """One detected object.

    Attributes:
      box: left, top, right, bottom in pixels, [4] float32.
      score: confidence from 0 to 1.
      mask: bool [H, W], True at the object's pixels; None if the detector gives no mask.
    """

    box: np.ndarray
    score: float
    mask: np.ndarray | None = None


# class name -> detected objects
Objects = dict[str, list[Detection]]
# (objects of one class, class name) -> colour of each object
NameColours = Callable[[Sequence[Detection], str], Sequence[str]]


def select(found: Objects, tag: str) -> Objects:
    """Return the objects that the rules consider: per class, the best-scoring ones, best first.

    Objects must score above the tag's threshold, at most 16 per class are returned, and classes
    without objects are left out. Overlapping boxes are kept, because the official evaluator's
    non-maximum suppression is off by default.

    Args:
      found: all detections, in any order.
      tag: tag of the prompt; "counting" has a higher threshold.

    Example:
      >>> box = np.zeros(4, np.float32)
      >>> found = {"cat": [Detection(box, 0.5), Detection(box, 0.95)], "dog": [Detection(box, 0.1)]}
      >>> {name: len(objects) for name, objects in select(found, "position").items()}
      {'cat': 2}
      >>> {name: len(objects) for name, objects in select(found, "counting").items()}
      {'cat': 1}
    """
    threshold = COUNTING_THRESHOLD if tag == "counting" else THRESHOLD
    chosen = {}
    for name, objects in found.items():
        scores = np.array([detection.score for detection in objects], np.float32)
        order = np.argsort(scores)[::-1]
        best = [objects[i] for i in order[scores[order] > threshold][:MAX_OBJECTS]]
        if best:
            chosen[name] = best
    return chosen


def relations(a: np.ndarray, b: np.ndarray) -> set[str]:
    """Return the relations that hold for box `a` relative to box `b`: up to two of `RELATIONS`.

    Per axis, the offset between the centres is reduced by a tenth of the summed box sizes. A
    relation holds if what remains along its axis is more than half of the distance between the
    centres.

    Args:
      a, b: boxes [4]: left, top, right, bottom.

    Example:
      >>> sorted(relations(np.array([0, 0, 10, 10]), np.array([50, 50, 60, 60])))
      ['above', 'left of']
      >>> relations(np.array([0, 0, 10, 10]), np.array([1, 0, 11, 10]))
      set()
    """
    corners = np.stack([a, b]).reshape(2, 2, 2)  # [box, corner, axis]
    centres = corners.mean(axis=1)
    margin = POSITION_MARGIN * np.abs(corners[:, 1] - corners[:, 0]).sum(axis=0)
    offset = centres[0] - centres[1]
    beyond = np.maximum(np.abs(offset) - margin, 0) * np.sign(offset)
    if np.all(np.abs(beyond) < 1e-3):
        return set()
    x, y = beyond / np.linalg.norm(offset)
    holds = (x < -0.5, x > 0.5, y < -0.5, y > 0.5)
    return {relation for relation, true in zip(RELATIONS, holds, strict=True) if true}


def judge(
    objects: Objects, metadata: dict[str, Any], colours: NameColours | None = None
) -> tuple[bool, str]:
    """Decide whether an image shows what its prompt asks for.

    Colour and position are checked for the `count` best-scoring objects of a class. A position
    must hold between each of them and each object of the class that it refers to.

    Args:
      objects: the result of `select`.
      metadata: the prompt's `include` clauses and, optionally, `exclude` clauses.
      colours: classifies colours; called only for clauses with a colour.

    Returns:
      Whether the image is correct, and the reasons if it isn't, one per line.

    Example:
      >>> two_cats = {"include": [{"class": "cat", "count": 2}]}
      >>> judge({"cat": [Detection(np.zeros(4), 0.9)]}, two_cats)
      (False, 'cat: 1, must be 2 or more')
    """
    reasons: list[str] = []
    groups: list[list[Detection] | None] = []  # objects per `include` clause; None if it failed
    for wanted in metadata.get("include", []):
        failures, group = _check(objects, wanted, groups, colours)
        reasons += failures
        groups.append(None if failures else group)
    for unwanted in metadata.get("exclude", []):
        count = len(objects.get(unwanted["class"], []))
        if count >= unwanted["count"]:
            reasons.append(f"{unwanted['class']}: {count}, must be under {unwanted['count']}")
    return not reasons, "\n".join(reasons)


def _check(
    objects: Objects,
    wanted: dict[str, Any],
    groups: Sequence[list[Detection] | None],
    colours: NameColours | None,
) -> tuple[list[str], list[Detection]]:
    """Check one `include` clause; return the reasons why it fails, and its objects."""
    name, count = wanted["class"], wanted["count"]
    group = objects.get(name, [])[:count]
    if len(group) < count:
        return [f"{name}: {len(group)}, must be {count} or more"], group
    if "color" in wanted:
        # Callers must pass `colours` if a clause has a colour.
        seen = list(cast(NameColours, colours)(group, name))
        if seen.count(wanted["color"]) < count:
            return [f"{name}: {', '.join(seen)}, must be {count} {wanted['color']}"], group
    if "position" in wanted:
        relation, target = wanted["position"]
        others = groups[target]
        if others is None:
            return [f"{name}: must be {relation} an object that wasn't found as required"], group
        for detection in group:
            for other in others:
                found = relations(detection.box, other.box)
                if relation not in found:
                    place = " and ".join(sorted(found)) or "on no side of"
                    return [f"{name}: {place} the other object, must be {relation} it"], group
    return [], group

"""GenEval's rules: from the objects that a detector found to right or wrong.

Source: djghosh13/geneval, `evaluation/evaluate_images.py` (Ghosh et al. 2023, arXiv:2310.11513).
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np

THRESHOLD = 0.3
COUNTING_THRESHOLD = 0.9  # of the tag "counting", where a doubtful object spoils the count
MAX_OBJECTS = 16  # of each class
POSITION_MARGIN = 0.1
RELATIONS = ("left of", "right of", "above", "below")
COLOURS = ("red", "orange", "yellow", "green", "blue",
           "purple", "pink", "brown", "black", "white")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Detection:
    """One object.

    Attributes:
      box: left, top, right, bottom in pixels, [4] float32.
      score: 0 to 1.
      mask: bool [H, W], the object's pixels, or None.
    """

    box: np.ndarray
    score: float
    mask: np.ndarray | None = None


Objects = dict[str, list[Detection]]
# (objects of one class, that class) -> the colour of each
NameColours = Callable[[Sequence[Detection], str], Sequence[str]]


def select(found: Objects, tag: str) -> Objects:
    """What the rules look at: sure enough, surest first, 16 a class at most; no empty class.

    Overlapping boxes stay: the official evaluator's suppression is off unless asked for.
    """
    threshold = COUNTING_THRESHOLD if tag == "counting" else THRESHOLD
    chosen = {}
    for name, objects in found.items():
        scores = np.array([one.score for one in objects], np.float32)
        order = np.argsort(scores)[::-1]
        kept = [objects[i] for i in order[scores[order] > threshold][:MAX_OBJECTS]]
        if kept:
            chosen[name] = kept
    return chosen


def relations(a: np.ndarray, b: np.ndarray) -> set[str]:
    """Where box `a` [4] lies, seen from box `b` [4]: none, one or two of RELATIONS.

    The centres' offset counts as far as it exceeds a tenth of both sizes together, and in a
    direction only where that is more than half of the whole distance.
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
    """Whether an image shows what its prompt asks for.

    Only the `count` surest objects of a class are looked at, in colour and in position; every one
    of them must stand in the relation to every one of the class it is relative to.

    Args:
      objects: as `select` gives them.
      metadata: `include` and, optionally, `exclude`, of the prompt.
      colours: asked only where a colour is asked for.

    Returns:
      Right or not, and why not: a line for each thing that is wrong.
    """
    wrong: list[str] = []
    groups: list[list[Detection] | None] = []  # of each `include`, None where it isn't met
    for wanted in metadata.get("include", []):
        faults, group = _check(objects, wanted, groups, colours)
        wrong += faults
        groups.append(None if faults else group)
    for unwanted in metadata.get("exclude", []):
        count = len(objects.get(unwanted["class"], []))
        if count >= unwanted["count"]:
            wrong.append(f"{unwanted['class']}: {count}, must be under {unwanted['count']}")
    return not wrong, "\n".join(wrong)


def _check(
    objects: Objects,
    wanted: dict[str, Any],
    groups: Sequence[list[Detection] | None],
    colours: NameColours | None,
) -> tuple[list[str], list[Detection]]:
    """What is wrong with one `include`, and its objects."""
    name, count = wanted["class"], wanted["count"]
    group = objects.get(name, [])[:count]
    if len(group) < count:
        return [f"{name}: {len(group)}, must be {count} or more"], group
    if "color" in wanted:
        # Given wherever a colour is asked for.
        seen = list(cast(NameColours, colours)(group, name))
        if seen.count(wanted["color"]) < count:
            return [f"{name}: {', '.join(seen)}, must be {count} {wanted['color']}"], group
    if "position" in wanted:
        relation, target = wanted["position"]
        others = groups[target]
        if others is None:
            return [f"{name}: must be {relation} what isn't there as asked"], group
        for one in group:
            for other in others:
                found = relations(one.box, other.box)
                if relation not in found:
                    place = " and ".join(sorted(found)) or "at no side of"
                    return [f"{name}: {place} the other, must be {relation} it"], group
    return [], group

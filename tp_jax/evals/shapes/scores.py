"""Prompts and scores of Shapes, a small counterpart of GenEval with pictures of coloured shapes.

Images have GenEval's layout and are judged by GenEval's rules, but objects are found by an exact
program, `tp_jax.worlds.shapes.checker`, instead of a neural detector. Each prompt is either "seen"
or "unseen": training shows its combination of attributes, or never does.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from etils import epath

from tp_jax.evals.geneval.results import GenEvalScores, score_images, score_lines
from tp_jax.evals.geneval.rules import Detection, Objects
from tp_jax.evals.prompt import Prompt
from tp_jax.files.jsonl import read_lines
from tp_jax.messages.errors import UserError
from tp_jax.worlds.shapes.checker import find_objects
from tp_jax.worlds.shapes.scenes import HARD, SKILLS, Difficulty, all_requests


@dataclasses.dataclass(frozen=True)
class ShapesScores:
    """Scores by GenEval's rules, as shares from 0 to 1.

    Attributes:
      overall: scores of all images.
      seen, unseen: scores of prompts with combinations that training shows and never shows; None if
        there are no such prompts.
    """

    overall: GenEvalScores
    seen: GenEvalScores | None
    unseen: GenEvalScores | None


def make_prompts(per_skill: int = 40, seed: int = 0, difficulty: Difficulty = HARD) -> list[Prompt]:
    """Choose prompts of every skill; half of them unseen, if the skill has unseen combinations.

    Args:
      per_skill: number of prompts per skill. If fewer exist, they are repeated, with new names.
      seed: seed of the choice.
      difficulty: what the prompts may ask for.
    """
    rng = np.random.default_rng(seed)
    chosen = []
    for skill in SKILLS:
        requests = all_requests(skill, difficulty)
        groups = [
            [request for request in requests if request.seen is seen] for seen in (True, False)
        ]
        groups = [group for group in groups if group]
        counts = [per_skill // len(groups)] * len(groups)
        counts[0] += per_skill - sum(counts)
        for group, count in zip(groups, counts, strict=True):
            repeats = -(-count // len(group))
            order = [i for _ in range(repeats) for i in rng.permutation(len(group))]
            chosen += [group[i] for i in order[:count]]
    min_size = {"min_size": difficulty.min_size} if difficulty.min_size else {}
    return [
        Prompt(
            i,
            f"{i:05d}",
            request.caption,
            request.metadata | min_size | {"seen": request.seen, "index": i},
        )
        for i, request in enumerate(chosen)
    ]


def prompts_of_images(images: Sequence[tuple[epath.Path, dict[str, Any]]]) -> list[Prompt]:
    """Return the prompts of images that `find_images` found.

    Args:
      images: (path, metadata of the prompt) of each image.

    Raises:
      UserError: an image doesn't belong to a prompt of Shapes.
    """
    found = {}
    for path, metadata in images:
        name = path.parts[-3]
        if "seen" not in metadata:
            raise UserError(
                f"{path.parents[1]}: doesn't belong to a prompt of Shapes: generate the images "
                f"with --suite=shapes --make"
            )
        found[name] = Prompt(int(name), name, metadata["prompt"], metadata)
    return list(found.values())


@dataclasses.dataclass(frozen=True)
class _ColouredDetection(Detection):
    colour: str = ""


def detect(image: np.ndarray, min_size: float = 0.0) -> Objects:
    """Return the shapes in an image [S, S, 3] uint8, each with score 1.

    Args:
      min_size: objects of a smaller `Object.size` are fragments, which don't count.
    """
    objects: Objects = {}
    for found in find_objects(image):
        if found.shape and found.size >= min_size:
            box = np.array(found.box, np.float32) * len(image)
            detection = _ColouredDetection(box, 1.0, None, found.colour)
            objects.setdefault(found.shape, []).append(detection)
    return objects


def colours(image: np.ndarray, group: Sequence[Detection], name: str) -> list[str]:
    """Return the colours that `detect` found."""
    return [cast(_ColouredDetection, detection).colour for detection in group]


def score(folder: epath.Path, wanted: Sequence[Prompt], out: epath.Path) -> ShapesScores:
    """Judge a folder of images, and write the verdicts to `out` in GenEval's format.

    Args:
      folder: images with GenEval's layout.
      wanted: the expected prompts.
      out: FILE.jsonl.

    Raises:
      UserError: as `tp_jax.evals.geneval.results.score_images`.
    """
    min_size = wanted[0].metadata.get("min_size", 0.0)
    detector = functools.partial(detect, min_size=min_size)
    overall = score_images(folder, detector, colours, out, wanted)
    lines = read_lines(out)
    parts = {}
    for name, seen in (("seen", True), ("unseen", False)):
        part = [prompt for prompt in wanted if prompt.metadata["seen"] is seen]
        names = {prompt.name for prompt in part}
        part_lines = [
            (where, line)
            for where, line in lines
            if epath.Path(line["filename"]).parts[-3] in names
        ]
        parts[name] = score_lines(str(out), part_lines, part) if part else None
    return ShapesScores(overall, **parts)

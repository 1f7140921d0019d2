"""Shapes, the embedded twin of GenEval: its prompts, and a detector that is exact.

Images lie as GenEval's do and are judged by its rules; only the detector differs, which is
`tp_jax.worlds.shapes.checker`, and every prompt is of combinations that training shows or never
shows.
"""

import dataclasses
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
from tp_jax.worlds.shapes.scenes import SKILLS, all_requests


@dataclasses.dataclass(frozen=True)
class ShapesScores:
    """Shares of 0 to 1, by GenEval's rules.

    Attributes:
      overall: of all images, the skills' mean.
      seen, unseen: of prompts of combinations that training shows, and never shows; None where
        there are no such prompts.
    """

    overall: GenEvalScores
    seen: GenEvalScores | None
    unseen: GenEvalScores | None


def prompts(per_skill: int = 40, seed: int = 0) -> list[Prompt]:
    """Prompts of every skill, as far as there are half of them of unseen combinations.

    Args:
      per_skill: where a skill has fewer, they are repeated with other numbers.
      seed: which of them are chosen.
    """
    rng = np.random.default_rng(seed)
    chosen = []
    for skill in SKILLS:
        requests = all_requests(skill)
        groups = [[one for one in requests if one.seen is seen] for seen in (True, False)]
        groups = [group for group in groups if group]
        counts = [per_skill // len(groups)] * len(groups)
        counts[0] += per_skill - sum(counts)
        for group, count in zip(groups, counts, strict=True):
            rounds = -(-count // len(group))
            order = [i for _ in range(rounds) for i in rng.permutation(len(group))]
            chosen += [group[i] for i in order[:count]]
    return [
        Prompt(i, f"{i:05d}", one.caption, one.metadata | {"seen": one.seen, "index": i})
        for i, one in enumerate(chosen)
    ]


def drawn_prompts(images: Sequence[tuple[epath.Path, dict[str, Any]]]) -> list[Prompt]:
    """The prompts that images are of, as `tp_jax.evals.geneval.prompts.find_images` finds them.

    Raises:
      UserError: they are of others than those of Shapes.
    """
    found = {}
    for path, metadata in images:
        name = path.parts[-3]
        if "seen" not in metadata:
            raise UserError(f"{path.parents[1]}: isn't a prompt of Shapes; draw them with --make")
        found[name] = Prompt(int(name), name, metadata["prompt"], metadata)
    return list(found.values())


@dataclasses.dataclass(frozen=True)
class _Coloured(Detection):
    colour: str = ""


def detect(image: np.ndarray) -> Objects:
    """The shapes of an image [S, S, 3] uint8, as sure as can be."""
    objects: Objects = {}
    for found in find_objects(image):
        if found.shape:
            box = np.array(found.box, np.float32) * len(image)
            objects.setdefault(found.shape, []).append(_Coloured(box, 1.0, None, found.colour))
    return objects


def colours(image: np.ndarray, group: Sequence[Detection], name: str) -> list[str]:
    """The colours that `detect` found."""
    return [cast(_Coloured, one).colour for one in group]


def score(folder: epath.Path, wanted: Sequence[Prompt], out: epath.Path) -> ShapesScores:
    """Judges a folder of images, and writes a line for each to `out`, as GenEval's evaluator does.

    Raises:
      UserError: as `tp_jax.evals.geneval.results.score_images`.
    """
    overall = score_images(folder, detect, colours, out, wanted)
    lines = read_lines(out)
    parts = {}
    for name, seen in (("seen", True), ("unseen", False)):
        part = [prompt for prompt in wanted if prompt.metadata["seen"] is seen]
        of_part = {prompt.name for prompt in part}
        kept = [one for one in lines if epath.Path(one[1]["filename"]).parts[-3] in of_part]
        parts[name] = score_lines(str(out), kept, part) if part else None
    return ShapesScores(overall, **parts)

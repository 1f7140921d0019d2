"""GenEval 2's prompts, and Soft-TIFA scores from the answers to their questions.

A VQA model gives each question the probability of the right answer. The arithmetic mean over the
questions of a prompt estimates how many of its parts are right (AM), the geometric mean whether all
are (GM).

Source: facebookresearch/GenEval2 (Kamath et al. 2025, arXiv 2512.16853).
"""

import dataclasses
import json
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from etils import epath

from tp_jax.evals.prompt import Prompt
from tp_jax.files.jsonl import check_fields, read_lines, read_text
from tp_jax.messages.errors import UserError

SKILLS = ("object", "attribute", "count", "position", "verb")


@dataclasses.dataclass(frozen=True)
class SoftTifa:
    """Scores, as shares from 0 to 1.

    Attributes:
      am, gm: means over the prompts of the arithmetic and of the geometric mean of the answers.
      skills: mean of the answers by skill.
      atoms: mean of the geometric means by the number of parts of the prompt.
      prompts: number of prompts.
    """

    am: float
    gm: float
    skills: dict[str, float]
    atoms: dict[str, float]
    prompts: int


def read_prompts(path: epath.Path) -> list[Prompt]:
    """Read the prompts of `geneval2_data.jsonl`, in file order.

    Raises:
      UserError: the file doesn't exist, or a line isn't a prompt of GenEval 2.
    """
    prompts, seen = [], {}
    for where, content in read_lines(path):
        wanted = {"prompt": str, "atom_count": int, "vqa_list": list, "skills": list}
        check_fields(where, content, wanted)
        text, skills = content["prompt"], content["skills"]
        if not text.strip():
            raise UserError(f"{where}: the prompt is empty")
        if len(skills) != len(content["vqa_list"]) or not skills:
            raise UserError(f"{where}: skills and vqa_list must have equally many entries")
        unknown = [skill for skill in skills if skill not in SKILLS]
        if unknown:
            raise UserError(f"{where}: skill {unknown[0]!r} must be one of {', '.join(SKILLS)}")
        if text in seen:
            raise UserError(
                f"{where}: repeats {seen[text].rpartition(', ')[2]}: remove one of them"
            )
        seen[text] = where
        prompts.append(Prompt(len(prompts), f"{len(prompts):05d}", text, content))
    if not prompts:
        raise UserError(f"{path}: contains no prompts: give GenEval 2's geneval2_data.jsonl")
    return prompts


def read_answers(path: epath.Path, prompts: Sequence[Prompt]) -> list[list[float]]:
    """Read the list of scores that the official scorer wrote with --method=soft_tifa_am or _gm.

    Returns:
      For each prompt, the probability of the right answer to each of its questions.

    Raises:
      UserError: the file isn't such a list, or belongs to other prompts.
    """
    try:
        content = json.loads(read_text(path))
    except ValueError as error:
        raise UserError(f"{path} is invalid JSON: {error}; write it again") from error
    if not isinstance(content, list) or len(content) != len(prompts):
        count = f"{len(content)} entries" if isinstance(content, list) else "no list"
        raise UserError(
            f"{path} has {count}, but there are {len(prompts)} prompts: give the scores of these"
        )
    for prompt, answers in zip(prompts, content, strict=True):
        questions = len(prompt.metadata["skills"])
        numbers = answers if isinstance(answers, list) else []
        fits = len(numbers) == questions and all(
            isinstance(number, int | float) and 0 <= number <= 1.001 for number in numbers
        )
        if not fits:
            raise UserError(
                f"{path}: prompt {prompt.name}, {prompt.text!r}, needs {questions} numbers from 0 "
                f"to 1, not {str(answers)[:60]}: score with --method=soft_tifa_gm"
            )
    return content


def soft_tifa(prompts: Sequence[Prompt], answers: Sequence[Sequence[float]]) -> SoftTifa:
    """Compute the scores of the answers to the questions of some prompts."""
    by_skill: dict[str, list[float]] = defaultdict(list)
    by_atoms: dict[int, list[float]] = defaultdict(list)
    arithmetic, geometric = [], []
    for prompt, found in zip(prompts, answers, strict=True):
        numbers = np.array(found, np.float64)
        arithmetic.append(numbers.mean())
        geometric.append(np.exp(np.log(numbers).mean()) if numbers.all() else 0.0)
        by_atoms[prompt.metadata["atom_count"]].append(geometric[-1])
        for skill, number in zip(prompt.metadata["skills"], found, strict=True):
            by_skill[skill].append(number)
    return SoftTifa(
        am=float(np.mean(arithmetic)),
        gm=float(np.mean(geometric)),
        skills={skill: float(np.mean(by_skill[skill])) for skill in SKILLS if by_skill[skill]},
        atoms={str(atoms): float(np.mean(by_atoms[atoms])) for atoms in sorted(by_atoms)},
        prompts=len(prompts),
    )


def as_table(scores: SoftTifa) -> str:
    """Return the scores in percent as a table."""
    rows = [("Soft-TIFA AM, atoms", scores.am), ("Soft-TIFA GM, prompts", scores.gm)]
    rows += [(f"  AM, {skill}", value) for skill, value in scores.skills.items()]
    rows += [(f"  GM, {atoms} atoms", value) for atoms, value in scores.atoms.items()]
    return "\n".join(f"{name:24}{100 * value:8.2f}" for name, value in rows)

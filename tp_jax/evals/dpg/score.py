"""Compute DPG-Bench's scores from answers, with the official script's errors and without them.

An *item* is one prompt; its image is a grid of four *tiles*, one per sample. Each question about an
item asks for one *proposition*, which may depend on parent propositions of the same item.

The rule "official" reproduces the official script (TencentQQGYLab/ELLA,
`dpg_bench/compute_dpg_bench.py`) with its two errors; the rule "fixed" has neither:

- The script drops the first row of the questions file. If another question of that item depends on
  the dropped one, the script fails on that item and leaves it out (issue 61 of its repository).
- The script's category scores count only the answers about the last tile of each item (issue 60).

With several processes the script also assigns answers to wrong categories, differently in every
run. This can't be reproduced; the official rule here gives the result of one process.

Both rules compute category scores from the plain answers, without setting a question to 0 because
its parent was answered "no".
"""

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from tp_jax.messages.errors import UserError

TILES = 4
RULES = ("official", "fixed")

# (item, tile, proposition) -> answer; only the answer "yes", spelled exactly so, counts as correct
Answers = dict[tuple[str, int, int], str]


@dataclasses.dataclass(frozen=True)
class Question:
    """One row of the questions file.

    Attributes:
      row: row number, from 0.
      item: name of the prompt.
      proposition: number of the proposition within the item, from 1.
      parents: propositions that must be true for this one to be true; 0 means no parent.
      category: level-2 category, such as "entity - whole".
      text: the question.
    """

    row: int
    item: str
    proposition: int
    parents: tuple[int, ...]
    category: str
    text: str


@dataclasses.dataclass(frozen=True)
class Scores:
    """DPG-Bench's scores, from 0 to 100.

    Attributes:
      score: mean over prompts of the mean over tiles of the mean over questions.
      level1, level2: percentage of "yes" in each broad and each detailed category.
      prompts: number of prompts in `score`.
      left_out: items that the rule leaves out of `score`.
    """

    score: float
    level1: dict[str, float]
    level2: dict[str, float]
    prompts: int
    left_out: tuple[str, ...] = ()


def group_by_item(questions: Sequence[Question], rule: str) -> dict[str, dict[int, Question]]:
    """Return the questions that `rule` uses, by item and proposition, in the order of their rows.

    If a proposition occurs twice, the later row counts. If an item's rows aren't contiguous, the
    official script uses only the last contiguous part.

    Args:
      questions: all questions.
      rule: "official" or "fixed".

    Raises:
      UserError: the rule is unknown.
    """
    if rule not in RULES:
        raise UserError(f"rule {rule!r} is unknown: choose one of {', '.join(RULES)}")
    items: dict[str, dict[int, Question]] = {}
    previous = ""
    for question in questions:
        if rule == "official":
            if question.row == 0:
                continue
            if question.item != previous:
                items[question.item] = {}
            previous = question.item
        items.setdefault(question.item, {})[question.proposition] = question
    return items


def score(
    answers: Mapping[tuple[str, int, int], str], questions: Sequence[Question], rule: str = "fixed"
) -> Scores:
    """Score the answers to all questions.

    Args:
      answers: (item, tile, proposition) -> answer; only "yes", spelled exactly so, is correct.
      questions: all questions of the items to score.
      rule: "official" or "fixed", see the head of this file.

    Raises:
      UserError: a question that the rule uses has no answer for one of the four tiles.

    Example:
      >>> questions = [Question(1, "a", 1, (0,), "entity - whole", "Is there a cat?"),
      ...              Question(2, "a", 2, (1,), "attribute - color", "Is the cat red?")]
      >>> answers = {("a", tile, number): "yes" for tile in range(4) for number in (1, 2)}
      >>> answers["a", 3, 1] = "no"
      >>> scores = score(answers, questions)
      >>> scores.score, scores.level1
      (75.0, {'attribute': 100.0, 'entity': 75.0})
    """
    items = group_by_item(questions, rule)
    means, left_out, yes = [], [], defaultdict(list)
    for item in dict.fromkeys(question.item for question in questions):
        asked = items.get(item, {})
        values, scores = [], []
        try:
            for tile in range(TILES):
                values.append(_answer_values(answers, item, tile, asked))
                scores.append(_tile_score(values[-1], asked, rule))
        except LookupError:
            left_out.append(item)
            continue
        means.append(np.mean(scores))
        for tile in values if rule == "fixed" else values[-1:]:
            for number, value in tile.items():
                yes[asked[number].category].append(value)
    if not means:
        raise UserError(f"the {rule} rule leaves out every item: {', '.join(left_out)}")
    broad = defaultdict(list)
    for category, correct in yes.items():
        broad[category.split("-")[0].strip()] += correct
    return Scores(
        score=100 * float(np.mean(means)),
        level1={name: 100 * float(np.mean(broad[name])) for name in sorted(broad)},
        level2={name: 100 * float(np.mean(yes[name])) for name in sorted(yes)},
        prompts=len(means),
        left_out=tuple(left_out),
    )


def _answer_values(
    answers: Mapping[tuple[str, int, int], str], item: str, tile: int, asked: dict[int, Question]
) -> dict[int, float]:
    """Return 1.0 for each question answered "yes" and 0.0 for each other."""
    for number in asked:
        if (item, tile, number) not in answers:
            raise UserError(f"question {number} of {item} has no answer for tile {tile}")
    return {number: float(answers[item, tile, number] == "yes") for number in asked}


def _tile_score(values: dict[int, float], asked: dict[int, Question], rule: str) -> float:
    """Return the mean over questions, with a question counting 0 if one of its parents does.

    Parents come before their children in the questions file.

    Raises:
      LookupError: the official script fails here, because a parent or all questions are missing.
    """
    if not asked:
        raise LookupError
    scores = dict(values)
    for number, question in asked.items():
        for parent in question.parents:
            if parent == 0 or (rule == "fixed" and parent not in scores):
                continue
            if scores[parent] == 0:
                scores[number] = 0.0
                break
    return float(np.mean(list(scores.values())))

"""DPG-Bench's score of answers: as the official script has it, and without its faults.

The official script (TencentQQGYLab/ELLA, `dpg_bench/compute_dpg_bench.py`) has two:

- It drops the first row of the questions' file. Where a question of that item depends on the
  dropped one, the script fails on that item and leaves it out (issue 61).
- Its categories count the answers of an item's last tile alone (issue 60).

In several processes it also mixes categories up, in an order that changes from run to run; nothing
can repeat that, and what is here is what one process finds.

Both rules score categories by the answers themselves, a parent's "no" notwithstanding.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from tp_jax.messages.errors import UserError

TILES = 4
RULES = ("official", "fixed")

# (item, tile, proposition) -> answer
Answers = dict[tuple[str, int, int], str]


@dataclasses.dataclass(frozen=True)
class Question:
    """One row of the questions' file.

    Attributes:
      row: from 0.
      item: of which prompt.
      proposition: its number in the item.
      parents: propositions without which it can't be true; 0 is none.
      category: level 2, as "entity - whole".
      text: what is asked.
    """

    row: int
    item: str
    proposition: int
    parents: tuple[int, ...]
    category: str
    text: str


@dataclasses.dataclass(frozen=True)
class Scores:
    """Scores of 0 to 100.

    Attributes:
      score: mean over prompts of the mean over tiles of the mean over questions.
      level1, level2: share of "yes" in each category.
      prompts: how many are in `score`.
      left_out: items that aren't, as the rule has it.
    """

    score: float
    level1: dict[str, float]
    level2: dict[str, float]
    prompts: int
    left_out: tuple[str, ...] = ()


def group(questions: Sequence[Question], rule: str) -> dict[str, dict[int, Question]]:
    """The questions that `rule` asks, by item and proposition, in the order of their rows.

    A proposition given twice counts once, with the later row. Where an item's rows aren't
    together, the official script keeps the last of the pieces.
    """
    if rule not in RULES:
        raise UserError(f"rule {rule!r} is unknown: choose one of {', '.join(RULES)}")
    items: dict[str, dict[int, Question]] = {}
    previous = ""
    for one in questions:
        if rule == "official":
            if one.row == 0:
                continue
            if one.item != previous:
                items[one.item] = {}
            previous = one.item
        items.setdefault(one.item, {})[one.proposition] = one
    return items


def score(
    answers: Mapping[tuple[str, int, int], str], questions: Sequence[Question], rule: str = "fixed"
) -> Scores:
    """Scores the answers to all questions by a rule, "official" or "fixed".

    Args:
      answers: (item, tile, proposition) -> answer; only "yes", so written, counts.
      questions: of the items to be scored.

    Raises:
      UserError: a question that the rule asks has no answer on one of the four tiles.
    """
    items = group(questions, rule)
    means, left_out, yes = [], [], defaultdict(list)
    for item in dict.fromkeys(one.item for one in questions):
        asked = items.get(item, {})
        raw, scores = [], []
        try:
            for tile in range(TILES):
                raw.append(_raw(answers, item, tile, asked))
                scores.append(_tile_score(raw[-1], asked, rule))
        except LookupError:
            left_out.append(item)
            continue
        means.append(np.mean(scores))
        for tile in raw if rule == "fixed" else raw[-1:]:
            for number, value in tile.items():
                yes[asked[number].category].append(value)
    if not means:
        raise UserError(f"the {rule} rule leaves out every item: {', '.join(left_out)}")
    broad = defaultdict(list)
    for category, values in yes.items():
        broad[category.split("-")[0].strip()] += values
    return Scores(
        score=100 * float(np.mean(means)),
        level1={name: 100 * float(np.mean(broad[name])) for name in sorted(broad)},
        level2={name: 100 * float(np.mean(yes[name])) for name in sorted(yes)},
        prompts=len(means),
        left_out=tuple(left_out),
    )


def _raw(
    answers: Mapping[tuple[str, int, int], str], item: str, tile: int, asked: dict[int, Question]
) -> dict[int, float]:
    """1 or 0 of each question, as answered."""
    for number in asked:
        if (item, tile, number) not in answers:
            raise UserError(f"question {number} of {item} has no answer on tile {tile}")
    return {number: float(answers[item, tile, number] == "yes") for number in asked}


def _tile_score(raw: dict[int, float], asked: dict[int, Question], rule: str) -> float:
    """The mean, a child counting 0 where a parent does; parents come first in the file.

    Raises:
      LookupError: the official script would fail, for lack of a parent or of all questions.
    """
    if not asked:
        raise LookupError
    scores = dict(raw)
    for number, one in asked.items():
        for parent in one.parents:
            if parent == 0 or (rule == "fixed" and parent not in scores):
                continue
            if scores[parent] == 0:
                scores[number] = 0.0
                break
    return float(np.mean(list(scores.values())))

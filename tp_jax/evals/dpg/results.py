"""Read DPG-Bench's scores from result files.

| files | written by | also needed | scores |
|---|---|---|---|
| `X.txt` | official script | nothing | official, as the script computed them |
| `X.txt`, `X_detail.txt` | official script | the questions | official and fixed |
| `FILE.jsonl` | `answer_images` | the questions | official and fixed |
"""

import dataclasses
import pathlib
import re
from collections.abc import Collection, Sequence

import numpy as np
from etils import epath

from tp_jax.evals.dpg.prompts import NUM_PROMPTS
from tp_jax.evals.dpg.questions import read_answers
from tp_jax.evals.dpg.score import TILES, Answers, Question, Scores, group_by_item, score
from tp_jax.files.jsonl import read_text
from tp_jax.messages.errors import UserError

NUMBER = r"\d+(?:\.\d+)?(?:e-\d+)?"
# Lines of the official script's files: scores of an image, a summary value, an answer.
IMAGE_LINE = re.compile(rf"(.+?)((?:, {NUMBER})+)")
SUMMARY_LINE = re.compile(rf"(\t?)([^:]+): ({NUMBER}|nan)")
ANSWER_LINE = re.compile(r"(.+), \((\d+), (\d+), \d+, \d+\), (.*)")


@dataclasses.dataclass(frozen=True)
class Results:
    """Scores of the same images by both rules.

    Attributes:
      official: scores by the official rule.
      fixed: scores by the fixed rule; None if the files don't contain the answers.
      notes: what a score leaves out or needs.
    """

    official: Scores
    fixed: Scores | None
    notes: tuple[str, ...] = ()


def read_results(path: epath.Path, questions: Sequence[Question] | None = None) -> Results:
    """Read the scores from a file written by the official script or by `answer_images`.

    Args:
      path: FILE.jsonl with answers, or FILE.txt written by the official script.
      questions: the questions of all expected items; None expects the whole benchmark.

    Raises:
      UserError: the file is damaged, lacks images or answers, or belongs to other questions.
    """
    if path.name.endswith("_detail.txt"):
        whole = path.with_name(path.name.replace("_detail.txt", ".txt"))
        raise UserError(f"{path}: has only the answers: name {whole.name}; both files are read")
    if not path.name.endswith(".txt"):
        if questions is None:
            raise UserError(f"{path}: answers need their questions: set --questions=dpg_bench.csv")
        answers = read_answers(path)
        _check_items(str(path), {item for item, _, _ in answers}, questions)
        official = score(answers, questions, "official")
        return Results(official, score(answers, questions, "fixed"), _notes(official))
    means, official = _read_official(path)
    if questions is None:
        if not NUM_PROMPTS - 1 <= len(means) <= NUM_PROMPTS:
            raise UserError(
                f"{path}: has {len(means)} images, but the benchmark has {NUM_PROMPTS}, of which "
                f"the official script leaves out at most one: run the script on all images"
            )
        note = "the fixed scores need the questions: set --questions=dpg_bench.csv"
        return Results(official, None, (note,))
    return _with_answers(path, means, official, questions)


def _with_answers(
    path: epath.Path, means: dict[str, float], official: Scores, questions: Sequence[Question]
) -> Results:
    """Return the official scores, and the fixed ones from the answers in `X_detail.txt`."""
    first = {question.item for question in questions if question.row == 0}
    _check_items(str(path), means.keys(), questions, optional=first)
    wanted = dict.fromkeys(question.item for question in questions)
    left_out = tuple(item for item in wanted if item not in means)
    official = dataclasses.replace(official, left_out=left_out)
    detail = path.with_name(path.name.replace(".txt", "_detail.txt"))
    if not detail.exists():
        note = f"the fixed scores need the answers in {detail.name}, which doesn't exist"
        return Results(official, None, (*_notes(official), note))
    answers = _read_detail(detail, questions)
    again = score(answers, questions, "official")
    if abs(again.score - official.score) > 1e-6 or again.left_out != left_out:
        raise UserError(
            f"{path}: the score {official.score:.4f} differs from the score {again.score:.4f} of "
            f"the answers in {detail.name}: use files of the same run"
        )
    rest = [question for question in questions if question.item not in first]
    fixed = dataclasses.replace(score(answers, rest, "fixed"), left_out=tuple(sorted(first)))
    notes = _notes(official)
    if first:
        notes += (
            f"the fixed scores leave out {', '.join(fixed.left_out)}, because the official script "
            f"never asks its first question",
        )
    if not _close(again.level2, official.level2):
        notes += (
            "the official category scores don't match the script's answers: with several processes "
            "the script assigns answers to wrong categories",
        )
    return Results(official, fixed, notes)


def _close(a: dict[str, float], b: dict[str, float]) -> bool:
    return a.keys() == b.keys() and all(abs(a[name] - b[name]) < 1e-6 for name in a)


def _notes(official: Scores) -> tuple[str, ...]:
    if not official.left_out:
        return ()
    return (f"the official score leaves out {', '.join(official.left_out)}, as the script does",)


def _check_items(
    where: str,
    found: Collection[str],
    questions: Sequence[Question],
    optional: Collection[str] = frozenset(),
) -> None:
    wanted = dict.fromkeys(question.item for question in questions)
    unknown = sorted(set(found) - wanted.keys())
    missing = [item for item in wanted if item not in found and item not in optional]
    if unknown:
        raise UserError(f"{where}: {unknown[0]} isn't an item of the questions given")
    if missing:
        raise UserError(
            f"{where}: {len(missing)} of {len(wanted)} images are missing; the first is "
            f"{missing[0]}"
        )


def _read_official(path: epath.Path) -> tuple[dict[str, float], Scores]:
    """Read the official script's file: score of each item from 0 to 1, and the summary's scores."""
    lines = read_text(path).removesuffix("\n").split("\n")
    start = next((i for i, line in enumerate(lines) if line.startswith("Model: ")), len(lines))
    means: dict[str, float] = {}
    for number, line in enumerate(lines[:start], 1):
        match = IMAGE_LINE.fullmatch(line)
        if not match:
            raise UserError(
                f"{path}, line {number}: must be an image and its scores; the file may be truncated"
            )
        item = _item(match[1])
        *tiles, mean = map(float, match[2].split(", ")[1:])
        if len(tiles) != TILES:
            raise UserError(
                f"{path}, line {number}: has {len(tiles)} scores and their mean, must have "
                f"{TILES}: run the official script with --pic-num {TILES}"
            )
        if item in means:
            raise UserError(f"{path}, line {number}: {item} already has scores")
        means[item] = mean
    summary = _read_summary(lines[start:])
    total = summary.pop(("", "DPG-Bench score"), None)
    if total is None or not means:
        raise UserError(
            f"{path}: has no line 'DPG-Bench score: …', so the script didn't finish: run it again"
        )
    if not abs(100 * np.mean(list(means.values())) - total) < 1e-6:
        raise UserError(
            f"{path}: the score {total} isn't the mean of the images' scores; the file may be "
            f"truncated"
        )
    level1, level2 = (
        {name: value for (part, name), value in sorted(summary.items()) if part == title}
        for title in ("L1 category scores", "L2 category scores")
    )
    return means, Scores(total, level1, level2, len(means))


def _read_summary(lines: list[str]) -> dict[tuple[str, str], float]:
    """Read the summary lines as {(title of the list, name): value}."""
    found, title = {}, ""
    for line in lines:
        match = SUMMARY_LINE.fullmatch(line)
        if line.endswith(":"):
            title = line[:-1]
        elif match:
            found[title if match[1] else "", match[2]] = float(match[3])
    return found


def _read_detail(path: epath.Path, questions: Sequence[Question]) -> Answers:
    """Read the official script's answers.

    The file has the text of each question but not its number, so each line is matched with the
    next question of its item and tile.
    """
    grouped = group_by_item(questions, "official")
    asked = {item: list(by_number.values()) for item, by_number in grouped.items()}
    answers: Answers = {}
    position: dict[tuple[str, int], int] = {}
    for number, line in enumerate(read_text(path).removesuffix("\n").split("\n"), 1):
        match = ANSWER_LINE.fullmatch(line)
        if not match:
            raise UserError(
                f"{path}, line {number}: must be image, tile, question and answer; the file may be "
                f"truncated"
            )
        item = _item(match[1])
        tile = 2 * (match[3] != "0") + (match[2] != "0")
        i = position.get((item, tile), 0)
        question = asked[item][i] if i < len(asked.get(item, [])) else None
        if question is None or not match[4].startswith(question.text + ", "):
            raise UserError(
                f"{path}, line {number}: isn't the next question for {item}; the file may belong "
                f"to other questions or contain two runs"
            )
        answers[item, tile, question.proposition] = match[4][len(question.text) + 2 :]
        position[item, tile] = i + 1
    return answers


def _item(path: str) -> str:
    """Return the item of an image file; like the official script, cut its name at the first dot."""
    return pathlib.PurePosixPath(path).name.split(".")[0]

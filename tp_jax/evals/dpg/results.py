"""DPG-Bench's scores from files, and which gives which.

| file | needs | gives |
|---|---|---|
| `X.txt`, of the official script | | the official scores, its own sums |
| `X_detail.txt` beside it, its answers | the questions | the fixed scores too |
| `FILE.jsonl` of `dpg.answer_images` | the questions | both |
"""

import dataclasses
import pathlib
import re
from collections.abc import Collection, Sequence

import numpy as np
from etils import epath

from tp_jax.evals.dpg.questions import PROMPTS, read_answers
from tp_jax.evals.dpg.score import TILES, Answers, Question, Scores, group, score
from tp_jax.files.jsonl import read_text
from tp_jax.messages.errors import UserError

NUMBER = r"\d+(?:\.\d+)?(?:e-\d+)?"
IMAGE = re.compile(rf"(.+?)((?:, {NUMBER})+)")
SUMMARY = re.compile(rf"(\t?)([^:]+): ({NUMBER}|nan)")
ANSWER = re.compile(r"(.+), \((\d+), (\d+), \d+, \d+\), (.*)")


@dataclasses.dataclass(frozen=True)
class Results:
    """Both scores of the same images.

    Attributes:
      fixed: None where the file doesn't say enough.
      notes: what a score lacks, and what would give it.
    """

    official: Scores
    fixed: Scores | None
    notes: tuple[str, ...] = ()


def read_results(path: epath.Path, questions: Sequence[Question] | None = None) -> Results:
    """Scores from what the official script, or `dpg.answer_images`, writes.

    Args:
      path: FILE.jsonl of answers, or FILE.txt of the official script.
      questions: of the items that must have been drawn; the whole benchmark by default.

    Raises:
      UserError: the file is damaged, lacks images or answers, or isn't of these questions.
    """
    if path.name.endswith("_detail.txt"):
        whole = path.with_name(path.name.replace("_detail.txt", ".txt"))
        raise UserError(f"{path}: has answers alone; name {whole.name}, which is read with it")
    if not path.name.endswith(".txt"):
        if questions is None:
            raise UserError(f"{path}: answers are scored with their questions: name dpg_bench.csv")
        answers = read_answers(path)
        _check_items(str(path), {item for item, _, _ in answers}, questions)
        official = score(answers, questions, "official")
        return Results(official, score(answers, questions, "fixed"), _notes(official))
    means, official = _read_official(path)
    if questions is None:
        if not PROMPTS - 1 <= len(means) <= PROMPTS:
            raise UserError(
                f"{path}: {len(means)} images of the benchmark's {PROMPTS}; the official script "
                f"leaves out one at most"
            )
        return Results(official, None, ("the fixed scores need the questions: dpg_bench.csv",))
    return _with_answers(path, means, official, questions)


def _with_answers(
    path: epath.Path, means: dict[str, float], official: Scores, questions: Sequence[Question]
) -> Results:
    """The official scores, and from the answers in the file beside them the fixed ones."""
    first = {one.item for one in questions if one.row == 0}
    _check_items(str(path), means.keys(), questions, optional=first)
    wanted = dict.fromkeys(one.item for one in questions)
    left_out = tuple(item for item in wanted if item not in means)
    official = dataclasses.replace(official, left_out=left_out)
    detail = path.with_name(path.name.replace(".txt", "_detail.txt"))
    if not detail.exists():
        note = f"the fixed scores need the answers, which {detail.name} would have"
        return Results(official, None, (*_notes(official), note))
    answers = _read_detail(detail, questions)
    again = score(answers, questions, "official")
    if abs(again.score - official.score) > 1e-6 or again.left_out != left_out:
        raise UserError(
            f"{path}: its score, {official.score:.4f}, isn't that of the answers in {detail.name}, "
            f"{again.score:.4f}"
        )
    rest = [one for one in questions if one.item not in first]
    fixed = dataclasses.replace(score(answers, rest, "fixed"), left_out=tuple(sorted(first)))
    notes = _notes(official)
    if first:
        notes += (
            f"the fixed scores leave out {', '.join(fixed.left_out)}: the official script never "
            f"asks its first question",
        )
    if not _close(again.level2, official.level2):
        notes += (
            "the official category scores aren't those of its answers: in several processes the "
            "script mixes categories up",
        )
    return Results(official, fixed, notes)


def _close(a: dict[str, float], b: dict[str, float]) -> bool:
    return a.keys() == b.keys() and all(abs(a[name] - b[name]) < 1e-6 for name in a)


def _notes(official: Scores) -> tuple[str, ...]:
    if not official.left_out:
        return ()
    return (f"the official score leaves out {', '.join(official.left_out)}, as its script does",)


def _check_items(
    where: str,
    found: Collection[str],
    questions: Sequence[Question],
    optional: Collection[str] = frozenset(),
) -> None:
    wanted = dict.fromkeys(one.item for one in questions)
    unknown = sorted(set(found) - wanted.keys())
    missing = [item for item in wanted if item not in found and item not in optional]
    if unknown:
        raise UserError(f"{where}: {unknown[0]} is no item of the questions given")
    if missing:
        raise UserError(
            f"{where}: {len(missing)} of {len(wanted)} images are missing; the first is "
            f"{missing[0]}"
        )


def _read_official(path: epath.Path) -> tuple[dict[str, float], Scores]:
    """The score of each item, 0 to 1, and the summary's."""
    lines = read_text(path).removesuffix("\n").split("\n")
    start = next((i for i, line in enumerate(lines) if line.startswith("Model: ")), len(lines))
    means: dict[str, float] = {}
    for number, line in enumerate(lines[:start], 1):
        match = IMAGE.fullmatch(line)
        if not match:
            raise UserError(f"{path}, line {number}: must be an image and its scores; cut short?")
        item = _item(match[1])
        *tiles, mean = map(float, match[2].split(", ")[1:])
        if len(tiles) != TILES:
            raise UserError(
                f"{path}, line {number}: {len(tiles)} scores and their mean, must be {TILES}: run "
                f"the official script with --pic-num {TILES}"
            )
        if item in means:
            raise UserError(f"{path}, line {number}: {item} has scores already")
        means[item] = mean
    summary = _read_summary(lines[start:])
    total = summary.pop(("", "DPG-Bench score"), None)
    if total is None or not means:
        raise UserError(f"{path}: has no line 'DPG-Bench score: …'; the script didn't finish")
    if not abs(100 * np.mean(list(means.values())) - total) < 1e-6:
        raise UserError(f"{path}: its score, {total}, isn't the mean of its images; cut short?")
    level1, level2 = (
        {name: value for (part, name), value in sorted(summary.items()) if part == title}
        for title in ("L1 category scores", "L2 category scores")
    )
    return means, Scores(total, level1, level2, len(means))


def _read_summary(lines: list[str]) -> dict[tuple[str, str], float]:
    """(title of its list, name) -> value of each number."""
    found, title = {}, ""
    for line in lines:
        match = SUMMARY.fullmatch(line)
        if line.endswith(":"):
            title = line[:-1]
        elif match:
            found[title if match[1] else "", match[2]] = float(match[3])
    return found


def _read_detail(path: epath.Path, questions: Sequence[Question]) -> Answers:
    """Answers, each found by its question's text, which come in the order they are asked in."""
    asked = {item: list(one.values()) for item, one in group(questions, "official").items()}
    answers: Answers = {}
    place: dict[tuple[str, int], int] = {}
    for number, line in enumerate(read_text(path).removesuffix("\n").split("\n"), 1):
        match = ANSWER.fullmatch(line)
        if not match:
            raise UserError(
                f"{path}, line {number}: must be image, tile, question and answer; cut short?"
            )
        item = _item(match[1])
        tile = 2 * (match[3] != "0") + (match[2] != "0")
        i = place.get((item, tile), 0)
        question = asked[item][i] if i < len(asked.get(item, [])) else None
        if question is None or not match[4].startswith(question.text + ", "):
            raise UserError(
                f"{path}, line {number}: isn't the question that comes next for {item}; other "
                f"questions, or lines of two runs?"
            )
        answers[item, tile, question.proposition] = match[4][len(question.text) + 2 :]
        place[item, tile] = i + 1
    return answers


def _item(path: str) -> str:
    """The item of an image, as the official script takes it from the file's name."""
    return pathlib.PurePosixPath(path).name.split(".")[0]

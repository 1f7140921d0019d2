"""DPG-Bench's questions, and the answers that a VQA model gives to them.

Source: TencentQQGYLab/ELLA (Hu et al. 2024, arXiv:2403.05135).
"""

import csv
import io
from collections.abc import Callable, Sequence

import numpy as np
from etils import epath

from tp_jax.evals.dpg.grids import split_tiles
from tp_jax.evals.dpg.score import TILES, Answers, Question, Scores, score
from tp_jax.files.jsonl import appender, check_fields, read_lines, read_text, repair_last_line
from tp_jax.messages.errors import UserError
from tp_jax.messages.progress import progress_bar
from tp_jax.pictures.reading import read_rgb

COLUMNS = ("item_id", "text", "keywords", "proposition_id", "dependency", "category_broad",
           "category_detailed", "tuple", "question_natural_language")  # fmt: skip
ANSWER_FIELDS = {"item_id": str, "tile": int, "proposition_id": int, "answer": str}

# Visual question answering: (uint8 images [N, H, W, 3], N questions) -> N answers; only "yes" is
# correct.
VQA = Callable[[np.ndarray, Sequence[str]], Sequence[str]]


def read_questions(path: epath.Path) -> list[Question]:
    """Read the questions of `dpg_bench.csv`, in file order.

    Raises:
      UserError: the file doesn't exist, lacks a column or has an invalid row.
    """
    rows = csv.DictReader(io.StringIO(read_text(path), newline=""))
    columns = rows.fieldnames or ()
    missing = [column for column in COLUMNS if column not in columns]
    if missing:
        raise UserError(
            f"{path}: has no column {', '.join(missing)}: give DPG-Bench's dpg_bench.csv"
        )
    questions = []
    try:
        found = [(row, rows.line_num, cells) for row, cells in enumerate(rows)]
    except csv.Error as error:
        raise UserError(f"{path}, line {rows.line_num}: {error}; is a quote left open?") from error
    for row, line, cells in found:
        where = f"{path}, line {line}"
        if None in cells or None in cells.values():
            raise UserError(
                f"{where}: must have {len(columns)} cells; the file may be truncated: download it "
                f"again"
            )
        try:
            proposition = int(cells["proposition_id"])
            parents = tuple(int(one) for one in cells["dependency"].split(","))
        except ValueError:
            raise UserError(
                f"{where}: proposition_id {cells['proposition_id']!r} must be an integer, and "
                f"dependency {cells['dependency']!r} integers separated by commas"
            ) from None
        for column in ("item_id", "tuple", "question_natural_language"):
            if not cells[column].strip():
                raise UserError(f"{where}: {column} is empty")
        category = cells["tuple"].split("(")[0].strip()
        text = cells["question_natural_language"]
        questions.append(Question(row, cells["item_id"], proposition, parents, category, text))
    if not questions:
        raise UserError(f"{path}: contains no questions")
    return questions


def read_answers(path: epath.Path) -> Answers:
    """Read the answers that `answer_images` wrote.

    Raises:
      UserError: a line is invalid, or answers a question for the second time.
    """
    answers: Answers = {}
    for where, line in read_lines(path):
        check_fields(where, line, ANSWER_FIELDS)
        asked = (line["item_id"], line["tile"], line["proposition_id"])
        if not 0 <= line["tile"] < TILES:
            raise UserError(f"{where}: tile={line['tile']} must be 0 to {TILES - 1}")
        if asked in answers:
            raise UserError(f"{where}: this question already has an answer for this tile")
        answers[asked] = line["answer"]
    if not answers:
        raise UserError(f"{path}: contains no answers")
    return answers


def answer_images(
    folder: epath.Path,
    questions: Sequence[Question],
    vqa: VQA,
    out: epath.Path,
    batch_size: int = 8,
) -> dict[str, Scores]:
    """Answer all questions about all images with a VQA model, and write the answers to `out`.

    Every question is asked about each of the four tiles of its item's grid. Answers that `out`
    already contains are kept, so that an interrupted run resumes. A batch has questions of one
    item only.

    Args:
      folder: folder of image grids `<item_id>.png`.
      questions: the questions; the folder must have a grid for each of their items.
      vqa: the model, see `VQA`.
      out: FILE.jsonl.
      batch_size: number of questions that the model is asked at once.

    Returns:
      The scores by both rules, {"official": …, "fixed": …}.

    Raises:
      UserError: an image is missing or unreadable, or `out` has answers to other questions.
    """
    texts = {(question.item, question.proposition): question.text for question in questions}
    items = dict.fromkeys(question.item for question in questions)
    missing = [item for item in items if not (folder / f"{item}.png").exists()]
    if missing:
        raise UserError(
            f"{folder}: {len(missing)} of {len(items)} images are missing; the first is "
            f"{missing[0]}.png"
        )
    repair_last_line(out)
    answers = read_answers(out) if out.exists() and out.stat().length else {}
    for item, _, proposition in answers:
        if (item, proposition) not in texts:
            raise UserError(
                f"{out}: answers question {proposition} of {item}, which isn't one of the "
                f"questions given: delete the file or name another"
            )
    by_item: dict[str, dict[int, str]] = {item: {} for item in items}
    for (item, proposition), text in texts.items():
        by_item[item][proposition] = text
    with appender(out) as add, progress_bar(len(items), "DPG-Bench") as bar:
        for item, asked in by_item.items():
            missing = [(tile, proposition) for tile in range(TILES) for proposition in asked
                       if (item, tile, proposition) not in answers]  # fmt: skip
            images = _read_tiles(folder / f"{item}.png") if missing else ()
            for first in range(0, len(missing), batch_size):
                batch = missing[first : first + batch_size]
                tiles = np.stack([images[tile] for tile, _ in batch])
                found = vqa(tiles, [asked[proposition] for _, proposition in batch])
                for (tile, proposition), answer in zip(batch, found, strict=True):
                    answers[item, tile, proposition] = answer
                    values = (item, tile, proposition, answer)
                    add(dict(zip(ANSWER_FIELDS, values, strict=True)))
            bar.update()
    return {rule: score(answers, questions, rule) for rule in ("official", "fixed")}


def _read_tiles(path: epath.Path) -> np.ndarray:
    image = read_rgb(path)
    if image.shape[0] % 2 or image.shape[1] % 2:
        raise UserError(
            f"{path}: height and width {image.shape[:2]} must be even for a grid of 2×2 images"
        )
    return split_tiles(image)

"""DPG-Bench: prompts, images where its scorer looks for them, questions, and answers.

Source: TencentQQGYLab/ELLA (Hu et al. 2024, arXiv:2403.05135).
"""

import csv
import io
from collections.abc import Callable, Sequence

import numpy as np
from etils import epath

from tp_jax.evals.dpg.score import TILES, Answers, Question, Scores, score
from tp_jax.evals.prompt import Prompt
from tp_jax.files.jsonl import appender, check_fields, read_lines, read_text, repair_last_line
from tp_jax.messages.errors import UserError
from tp_jax.messages.progress import progress_bar
from tp_jax.pictures.reading import read_rgb

PROMPTS = 1065  # in the published benchmark
COLUMNS = ("item_id", "text", "keywords", "proposition_id", "dependency", "category_broad",
           "category_detailed", "tuple", "question_natural_language")  # fmt: skip
ANSWER_FIELDS = {"item_id": str, "tile": int, "proposition_id": int, "answer": str}

# (uint8 image [H, W, 3], question) -> answer; only "yes", so written, counts
VQA = Callable[[np.ndarray, str], str]


def read_prompts(folder: epath.Path) -> list[Prompt]:
    """The prompts of `prompts/<item_id>.txt` in a folder, or of the folder itself, by name.

    Raises:
      UserError: there are none, or one is empty.
    """
    inner = folder / "prompts"
    where = inner if inner.is_dir() else folder
    files = sorted(where.glob("*.txt")) if where.is_dir() else []
    if not files:
        raise UserError(f"{where}: has no prompts <item_id>.txt")
    prompts = []
    for index, file in enumerate(files):
        text = read_text(file).strip()
        if not text:
            raise UserError(f"{file}: the prompt is empty")
        prompts.append(Prompt(index, file.name.removesuffix(".txt"), text))
    return prompts


def image_path(out: epath.Path, prompt: Prompt) -> epath.Path:
    """Where the scorer looks for a prompt's grid."""
    return out / f"{prompt.name}.png"


def grid(images: np.ndarray) -> np.ndarray:
    """Four images [4, H, W, 3] as one [2H, 2W, 3], row by row, without a border."""
    count, height, width, channels = images.shape
    if count != TILES:
        raise ValueError(f"{count} images, a grid has {TILES}")
    rows = images.reshape(2, 2, height, width, channels).transpose(0, 2, 1, 3, 4)
    return rows.reshape(2 * height, 2 * width, channels)


def tiles(image: np.ndarray) -> np.ndarray:
    """The four images [4, H, W, 3] of a grid [2H, 2W, 3]."""
    height, width, channels = image.shape
    cells = image.reshape(2, height // 2, 2, width // 2, channels).transpose(0, 2, 1, 3, 4)
    return cells.reshape(TILES, height // 2, width // 2, channels)


def read_questions(path: epath.Path) -> list[Question]:
    """The questions of `dpg_bench.csv`, in its order.

    Raises:
      UserError: the file isn't there, lacks a column or has a damaged row.
    """
    rows = csv.DictReader(io.StringIO(read_text(path), newline=""))
    columns = rows.fieldnames or ()
    missing = [column for column in COLUMNS if column not in columns]
    if missing:
        raise UserError(f"{path}: has no column {', '.join(missing)}")
    questions = []
    try:
        found = [(row, rows.line_num, cells) for row, cells in enumerate(rows)]
    except csv.Error as error:
        raise UserError(f"{path}, line {rows.line_num}: {error}; is a quote left open?") from error
    for row, line, cells in found:
        where = f"{path}, line {line}"
        if None in cells or None in cells.values():
            raise UserError(f"{where}: must have {len(columns)} cells; cut short?")
        try:
            proposition = int(cells["proposition_id"])
            parents = tuple(int(one) for one in cells["dependency"].split(","))
        except ValueError:
            raise UserError(
                f"{where}: proposition_id {cells['proposition_id']!r} and dependency "
                f"{cells['dependency']!r} must be whole numbers, dependency with commas"
            ) from None
        for column in ("item_id", "tuple", "question_natural_language"):
            if not cells[column].strip():
                raise UserError(f"{where}: {column} is empty")
        category = cells["tuple"].split("(")[0].strip()
        text = cells["question_natural_language"]
        questions.append(Question(row, cells["item_id"], proposition, parents, category, text))
    if not questions:
        raise UserError(f"{path}: has no questions")
    return questions


def read_answers(path: epath.Path) -> Answers:
    """The answers that `answer_images` wrote.

    Raises:
      UserError: a line is damaged, or answers a question a second time.
    """
    answers: Answers = {}
    for where, line in read_lines(path):
        check_fields(where, line, ANSWER_FIELDS)
        asked = (line["item_id"], line["tile"], line["proposition_id"])
        if not 0 <= line["tile"] < TILES:
            raise UserError(f"{where}: tile={line['tile']} must be 0 to {TILES - 1}")
        if asked in answers:
            raise UserError(f"{where}: that question of that tile has an answer already")
        answers[asked] = line["answer"]
    if not answers:
        raise UserError(f"{path}: has no answers")
    return answers


def answer_images(
    folder: epath.Path, questions: Sequence[Question], vqa: VQA, out: epath.Path
) -> dict[str, Scores]:
    """Asks every question of each of its item's four images, and writes the answers to `out`.

    Answers that are there already are kept, so that a run goes on where it was stopped.

    Args:
      folder: of grids, `<item_id>.png`.
      questions: of all items that must have been drawn.
      out: FILE.jsonl.

    Returns:
      The scores by either rule, {"official": …, "fixed": …}.

    Raises:
      UserError: an image is missing or unreadable, or `out` has answers to other questions.
    """
    texts = {(one.item, one.proposition): one.text for one in questions}
    items = dict.fromkeys(one.item for one in questions)
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
                f"{out}: answers question {proposition} of {item}, which isn't asked here; delete "
                f"it or name another file"
            )
    by_item: dict[str, dict[int, str]] = {item: {} for item in items}
    for (item, proposition), text in texts.items():
        by_item[item][proposition] = text
    with appender(out) as add, progress_bar(len(items), "DPG-Bench") as bar:
        for item, asked in by_item.items():
            todo = [(tile, proposition) for tile in range(TILES) for proposition in asked
                    if (item, tile, proposition) not in answers]  # fmt: skip
            pictures = _read_tiles(folder / f"{item}.png") if todo else ()
            for tile, proposition in todo:
                answer = vqa(pictures[tile], asked[proposition])
                answers[item, tile, proposition] = answer
                values = (item, tile, proposition, answer)
                add(dict(zip(ANSWER_FIELDS, values, strict=True)))
            bar.update()
    return {rule: score(answers, questions, rule) for rule in ("official", "fixed")}


def _read_tiles(path: epath.Path) -> np.ndarray:
    image = read_rgb(path)
    if image.shape[0] % 2 or image.shape[1] % 2:
        raise UserError(f"{path}: {image.shape[:2]} can't be a grid of 2×2 images")
    return tiles(image)

"""DPG-Bench: files, questions and scores, checked by hand and against the official script."""

import json
import pathlib
import re

import numpy as np
import pytest
import question_formula
from benchmarks import grey_image, raises_user_error, write_lines
from etils import epath
from PIL import Image

from tp_jax.evals.dpg import grids as dpg_grids
from tp_jax.evals.dpg import questions as dpg
from tp_jax.evals.dpg.prompts import read_prompts
from tp_jax.evals.dpg.results import read_results
from tp_jax.evals.dpg.score import Question, score

GOLDEN = pathlib.Path(__file__).parent / "golden"

# Prompts, grids and questions


def test_prompts_are_read_and_grids_are_assembled(tmp_path):
    folder = epath.Path(tmp_path)
    (folder / "prompts").mkdir()
    (folder / "prompts" / "whoops1.txt").write_text("A cup,\nred.\n")
    (folder / "prompts" / "12.txt").write_text("Two cups")
    prompts = read_prompts(folder)
    assert [(p.index, p.name, p.text) for p in prompts] == [
        (0, "12", "Two cups"),
        (1, "whoops1", "A cup,\nred."),
    ]
    assert read_prompts(folder / "prompts") == prompts
    assert dpg_grids.image_path(folder, prompts[1]) == folder / "whoops1.png"
    images = np.arange(4 * 2 * 3 * 3).reshape(4, 2, 3, 3)
    grid = dpg_grids.join_tiles(images)
    assert grid.shape == (4, 6, 3)
    np.testing.assert_array_equal(grid[:2, 3:], images[1])
    np.testing.assert_array_equal(grid[2:, :3], images[2])
    np.testing.assert_array_equal(dpg_grids.split_tiles(grid), images)
    with pytest.raises(ValueError, match="a grid needs 4 images, got 3"):
        dpg_grids.join_tiles(images[:3])
    (folder / "prompts" / "12.txt").write_text(" \n")
    with raises_user_error("12.txt: the prompt is empty"):
        read_prompts(folder)
    with raises_user_error("has no prompts <item_id>.txt"):
        read_prompts(folder / "nowhere")


def write_questions(folder, text):
    path = folder / "dpg_bench.csv"
    path.write_text(text, newline="")
    return epath.Path(path)


def test_questions_are_read(tmp_path):
    questions = dpg.read_questions(write_questions(tmp_path, question_formula.csv_text("free")))
    assert questions[3] == Question(
        3, "partiprompts7", 4, (0,), "other - count", "Is it, of partiprompts7, true: cup, ==2?"
    )
    assert questions[9].parents == (1, 2)
    assert questions[4].category == "global -"
    assert len(questions) == 6 + 5 + 4 + 6 + 5


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("item_id,", "item,", "has no column item_id"),
        (",tuple,", ",triple,", "has no column tuple"),
        (",1,0,entity", ",one,0,entity", "line 2: proposition_id 'one' must be an integer"),
        (
            ',"1, 2",',
            ',"1; 2",',
            "dependency '1; 2' integers separated by commas",
        ),
        (",1,0,entity", ",1,,entity", "dependency '' integers separated by commas"),
        ("global -  (photo, old)", "", "line 6: tuple is empty"),
    ],
)
def test_wrong_questions_are_refused(old, new, words, tmp_path):
    text = question_formula.csv_text("dependent")
    assert old in text
    with raises_user_error(words):
        dpg.read_questions(write_questions(tmp_path, text.replace(old, new, 1)))


def test_truncated_questions_are_refused(tmp_path):
    text = question_formula.csv_text("dependent")
    with raises_user_error("line 27: must have 9 cells; the file may be truncated"):
        dpg.read_questions(write_questions(tmp_path, text[:-90]))
    with raises_user_error("contains no questions"):
        dpg.read_questions(write_questions(tmp_path, text[: text.index("\n") + 1]))
    with raises_user_error("has no column item_id"):
        dpg.read_questions(write_questions(tmp_path, ""))


# Scores


def one_item(*parents, item="a", start=0):
    """Questions of one item, one for each tuple of parents."""
    return [
        Question(start + i, item, i + 1, each, f"kind - {i}", f"{i}?")
        for i, each in enumerate(parents)
    ]


def answered(item, *tiles):
    """Answers by (item, tile, proposition) from one string per tile, for example "ynn"."""
    words = {"y": "yes", "n": "no", "Y": "Yes"}
    return {
        (item, tile, number): words[letter]
        for tile, letters in enumerate(tiles)
        for number, letter in enumerate(letters, 1)
    }


FIRST = one_item((0,))  # the official script drops the first row


def test_a_question_counts_only_if_its_parents_are_true():
    questions = one_item((0,), (1,), (2,), (0,), item="b", start=1)
    answers = answered("b", "yyyy", "nyyy", "ynyy", "Yyyn")
    for rule in ("official", "fixed"):
        scores = score(answers, questions, rule)
        assert scores.score == pytest.approx(100 * (4 + 1 + 2 + 0) / 16)
        assert scores.prompts == 1
    # Category scores ignore parents: "kind - 2" was always answered yes.
    assert score(answers, questions, "fixed").level2 == {
        "kind - 0": 50, "kind - 1": 75, "kind - 2": 100, "kind - 3": 75}  # fmt: skip
    assert score(answers, questions, "fixed").level1 == {"kind": 75}


def test_official_category_scores_use_only_the_last_tile():
    questions = one_item((0,), (0,), item="b", start=1)
    answers = answered("b", "yy", "yy", "yy", "yn")
    official, fixed = (score(answers, questions, rule) for rule in ("official", "fixed"))
    assert official.score == fixed.score == pytest.approx(100 * 7 / 8)
    assert official.level2 == {"kind - 0": 100, "kind - 1": 0}
    assert fixed.level2 == {"kind - 0": 100, "kind - 1": 75}
    assert (official.level1, fixed.level1) == ({"kind": 50}, {"kind": 87.5})


def test_official_rule_drops_the_first_row():
    questions = one_item((0,), (0,)) + one_item((0,), (0,), item="b", start=2)
    answers = answered("a", *["ny"] * 4) | answered("b", *["ny"] * 4)
    official, fixed = (score(answers, questions, rule) for rule in ("official", "fixed"))
    assert official.score == 75  # (1 of 1 + 1 of 2) / 2
    assert fixed.score == 50
    assert (official.left_out, official.prompts) == ((), 2)


def test_official_rule_drops_an_item_that_depends_on_the_first_row():
    questions = one_item((0,), (1,)) + one_item((0,), (0,), item="b", start=2)
    answers = answered("a", *["yy"] * 4) | answered("b", *["ny"] * 4)
    official, fixed = (score(answers, questions, rule) for rule in ("official", "fixed"))
    assert (official.score, official.left_out, official.prompts) == (50, ("a",), 1)
    assert (fixed.score, fixed.left_out, fixed.prompts) == (75, (), 2)
    with raises_user_error("the official rule leaves out every item: a"):
        score(answered("a", *["y"] * 4), FIRST, "official")


def test_missing_answers_are_refused():
    questions = one_item((0,), (0,))
    answers = answered("a", "yy", "yy", "yy", "yy")
    del answers["a", 2, 1]
    assert score(answers, questions, "official").score == 100  # the official script never asks it
    with raises_user_error("question 1 of a has no answer for tile 2"):
        score(answers, questions, "fixed")
    with raises_user_error("rule 'right' is unknown: choose one of official, fixed"):
        score(answers, questions, "right")


# Files of the official script and of this package


@pytest.fixture(params=question_formula.CASES)
def official(request, tmp_path):
    """(case, the results file of the official script, the questions)."""
    golden = json.loads((GOLDEN / "dpg.json").read_text())[request.param]
    (tmp_path / "run_results.txt").write_text(golden["results"])
    (tmp_path / "run_results_detail.txt").write_text(golden["detail"])
    table = write_questions(tmp_path, question_formula.csv_text(request.param))
    return request.param, epath.Path(tmp_path / "run_results.txt"), dpg.read_questions(table)


def formula_answers(questions):
    return {
        (one.item, tile, one.proposition): question_formula.answer(one.item, tile, one.text)
        for one in questions
        for tile in range(4)
    }


def test_official_rule_equals_the_official_script(official):
    case, path, questions = official
    ours = score(formula_answers(questions), questions, "official")
    theirs = read_results(path, questions).official
    assert ours.left_out == theirs.left_out == (("partiprompts7",) if case == "dependent" else ())
    assert ours.prompts == theirs.prompts
    assert ours.score == pytest.approx(theirs.score, abs=1e-9)
    assert ours.level1 == pytest.approx(theirs.level1, abs=1e-9)
    assert ours.level2 == pytest.approx(theirs.level2, abs=1e-9)
    assert len(ours.level2) == 5 and 20 < ours.score < 90


def test_fixed_score_from_official_files_lacks_the_first_item(official):
    case, path, questions = official
    results = read_results(path, questions)
    rest = questions[6:]
    expected = score(formula_answers(rest), rest, "fixed")
    assert results.fixed.score == pytest.approx(expected.score)
    assert results.fixed.level2 == expected.level2
    assert results.fixed.left_out == ("partiprompts7",)
    assert results.notes[-1].startswith(
        "the fixed scores leave out partiprompts7, because the official"
    )
    assert len(results.notes) == (2 if case == "dependent" else 1)


def test_fixed_score_needs_the_answers(official):
    _, path, questions = official
    (path.parent / "run_results_detail.txt").unlink()
    results = read_results(path, questions)
    assert results.fixed is None
    assert results.notes[-1].endswith(
        "need the answers in run_results_detail.txt, which doesn't exist"
    )
    with raises_user_error(
        "but the benchmark has 1065, of which the official script leaves out at most one"
    ):
        read_results(path)


def test_complete_official_results_need_no_questions(tmp_path):
    lines = [f"x/{i}.png, 1.0, 0.5, 0.0, 0.5, 0.5\n" for i in range(1064)]
    tail = ["Model: x\n", "L1 category scores:\n", "\tglobal: 50.0\n", "L2 category scores:\n"]
    tail += ["\tglobal -: 50.0\n", "Image path: x\n", "DPG-Bench score: 50.0\n"]
    path = epath.Path(tmp_path / "r.txt")
    path.write_text("".join(lines + tail))
    results = read_results(path)
    assert (results.official.score, results.official.prompts) == (50, 1064)
    assert (results.official.level1, results.official.level2) == ({"global": 50}, {"global -": 50})
    assert results.notes == ("the fixed scores need the questions: set --questions=dpg_bench.csv",)


def test_wrong_official_category_scores_are_noted(official):
    _, path, questions = official
    path.write_text(re.sub(r"(\tother - count: )\S+", r"\g<1>1.5", path.read_text()))
    assert (
        "with several processes the script assigns answers to wrong"
        in read_results(path, questions).notes[-1]
    )


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("", lambda s: s[: s.index("Model")], "has no line 'DPG-Bench score: …'"),
        ("", lambda s: s.replace("images/12", "images/13"), "13 isn't an item of"),
        ("", lambda s: s[s.index("\n") + 1 :], "isn't the mean of the images' scores"),
        ("", lambda s: "images/12.png, 0.5\n" + s, "has 0 scores and their mean"),
        ("", lambda s: "images/12.png\n" + s, "line 1: must be an image and its scores"),
        ("", lambda s: s[: s.index("\n") + 1] + s, "12 already has scores"),
        ("_detail", lambda s: s[:-20], "isn't the next question for whoops1"),
        ("_detail", lambda s: s.replace("(0, 0,", "(0 0,", 1), "line 1: must be image, tile"),
        ("_detail", lambda s: s.replace(", yes\n", ", no\n"), "of the answers in"),
        ("_detail", lambda s: s + s, "isn't the next question for 12"),
    ],
)
def test_damaged_official_files_are_refused(file, change, words, official):
    _, path, questions = official
    damaged = path.parent / f"run_results{file}.txt"
    before = damaged.read_text()
    damaged.write_text(change(before))
    with raises_user_error(words):
        read_results(path, questions)


def test_official_results_that_lack_an_image_are_refused(official):
    _, path, questions = official
    extra = [Question(99, "countbench9", 1, (0,), "global -", "?")]
    with raises_user_error("1 of 6 images are missing; the first is countbench9"):
        read_results(path, questions + extra)
    with raises_user_error("has only the answers: name run_results.txt"):
        read_results(path.parent / "run_results_detail.txt", questions)


@pytest.fixture
def grids(tmp_path):
    """(a folder of grids whose colours encode item and tile, the questions)."""
    folder = epath.Path(tmp_path / "grids")
    folder.mkdir()
    for index, item in enumerate(question_formula.ITEMS):
        tiles = np.zeros((4, 4, 4, 3), np.uint8)
        tiles[..., 0], tiles[..., 1] = index, np.arange(4)[:, None, None]
        Image.fromarray(dpg_grids.join_tiles(tiles)).save(folder / f"{item}.png")
    table = write_questions(tmp_path, question_formula.csv_text("dependent"))
    return folder, dpg.read_questions(table)


def make_vqa(most=999):
    """A model that answers by formula, and the list of its calls; it raises after `most` calls."""
    calls = []

    def answer(image, question):
        assert image.shape == (4, 4, 3) and np.ptp(image[..., 1]) == 0
        if len(calls) == most:
            raise KeyboardInterrupt
        calls.append(question)
        item, tile, _ = image[0, 0]
        return question_formula.answer(question_formula.ITEMS[item], tile, question)

    def vqa(images, questions):
        assert 1 <= len(images) <= 8
        return [answer(*asked) for asked in zip(images, questions, strict=True)]

    return vqa, calls


def test_each_question_is_asked_once_also_after_an_interruption(grids, tmp_path):
    folder, questions = grids
    out, whole = epath.Path(tmp_path / "a.jsonl"), epath.Path(tmp_path / "w.jsonl")
    vqa, calls = make_vqa()
    scores = dpg.answer_images(folder, questions, vqa, whole)
    assert len(calls) == 4 * len(questions)
    answers = formula_answers(questions)
    assert dpg.read_answers(whole) == answers
    assert scores == {rule: score(answers, questions, rule) for rule in ("official", "fixed")}
    results = read_results(whole, questions)
    assert {"official": results.official, "fixed": results.fixed} == scores
    assert results.notes == ("the official score leaves out partiprompts7, as the script does",)
    with pytest.raises(KeyboardInterrupt):
        dpg.answer_images(folder, questions, make_vqa(most=31)[0], out, batch_size=3)
    out.write_bytes(out.read_bytes()[:-5])
    vqa, calls = make_vqa()
    assert dpg.answer_images(folder, questions, vqa, out) == scores
    # Ten batches of three were whole, and the last answer of these is cut.
    assert len(calls) == 4 * len(questions) - 29
    assert out.read_text() == whole.read_text()


def test_grids_and_answers_that_do_not_fit_are_refused(grids, tmp_path):
    folder, questions = grids
    out = epath.Path(tmp_path / "a.jsonl")
    vqa = make_vqa()[0]
    with raises_user_error("1 of 6 images are missing; the first is new.png"):
        dpg.answer_images(folder, questions + one_item((0,), item="new"), vqa, out)
    write_lines(tmp_path / "a.jsonl", [dict(item_id="12", tile=0, proposition_id=9, answer="no")])
    with raises_user_error("answers question 9 of 12, which isn't one of the questions given"):
        dpg.answer_images(folder, questions, vqa, out)
    with raises_user_error("4 of 5 images are missing; the first is partiprompts7"):
        read_results(out, questions)
    with raises_user_error("answers need their questions: set --questions=dpg_bench.csv"):
        read_results(out)
    out.unlink()
    grey_image(0, size=7).save(folder / "12.png")
    with raises_user_error("12.png: height and width (7, 7) must be even"):
        dpg.answer_images(folder, questions, vqa, out)
    (folder / "12.png").write_bytes(b"png")
    with raises_user_error("12.png can't be read as an image"):
        dpg.answer_images(folder, questions, vqa, out)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tile": 4}, "line 2: tile=4 must be 0 to 3"),
        ({"tile": "1"}, "line 2: tile='1' must be int"),
        ({"answer": None}, "line 2: answer=None must be str"),
        ({"item_id": 12}, "line 2: item_id=12 must be str"),
        ({}, "line 2: this question already has an answer for this tile"),
    ],
)
def test_wrong_answers_are_refused(change, words, tmp_path):
    line = dict(item_id="12", tile=0, proposition_id=1, answer="yes")
    path = write_lines(tmp_path / "a.jsonl", [line, {**line, **change}])
    with raises_user_error(words):
        dpg.read_answers(path)


def test_open_quote_is_named(tmp_path):
    path = epath.Path(tmp_path / "dpg_bench.csv")
    path.write_text(",".join(dpg.COLUMNS) + '\na,"' + "x" * 200_000)
    with raises_user_error("; is a quote left open?"):
        dpg.read_questions(path)

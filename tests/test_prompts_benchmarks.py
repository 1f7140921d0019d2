"""GenEval and DPG-Bench: layouts, rules and scores, by hand and as the public code has them."""

import json
import pathlib
import re

import detection_formula
import numpy as np
import pytest
import question_formula
from etils import epath
from PIL import Image

from tp_jax.errors import UserError
from tp_jax.evals import dpg, geneval
from tp_jax.evals.dpg_results import read_results
from tp_jax.evals.dpg_score import Question, score
from tp_jax.evals.geneval_rules import Detection, judge, relations, select

GOLDEN = pathlib.Path(__file__).parent / "golden"


def fails(words):
    """A UserError of one line that says `words`."""
    return pytest.raises(UserError, match=rf"\A(?=[^\n]*\Z).*{re.escape(words)}")


# GenEval: prompts.

CAT = {"class": "cat", "count": 1}
PROMPTS = [
    {"tag": "single_object", "include": [CAT], "prompt": "a photo of a cat"},
    {"tag": "counting", "include": [{"class": "cat", "count": 2}],
     "exclude": [{"class": "cat", "count": 3}], "prompt": "a photo of two cats"},
    {"tag": "colors", "include": [{**CAT, "color": "red"}], "prompt": "a photo of a red cat"},
    {"tag": "position", "prompt": "a photo of a dog left of a cat",
     "include": [CAT, {"class": "dog", "count": 1, "position": ["left of", 0]}]},
]  # fmt: skip


def write_lines(path, contents):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(content) + "\n" for content in contents))
    return epath.Path(path)


@pytest.fixture
def prompts(tmp_path):
    return geneval.read_prompts(write_lines(tmp_path / "evaluation_metadata.jsonl", PROMPTS))


def test_geneval_prompts_keep_their_metadata_and_number_their_folders(prompts):
    assert [prompt.metadata for prompt in prompts] == PROMPTS
    assert [prompt.name for prompt in prompts] == ["00000", "00001", "00002", "00003"]
    assert [prompt.index for prompt in prompts] == [0, 1, 2, 3]
    assert prompts[3].text == "a photo of a dog left of a cat"


def test_geneval_layout_is_the_evaluator_s(prompts, tmp_path):
    out = epath.Path(tmp_path / "out")
    path = geneval.image_path(out, prompts[2], 3)
    assert path.relative_to(out).as_posix() == "00002/samples/0003.png"
    geneval.write_metadata(out, prompts[2])
    assert json.loads((out / "00002" / "metadata.jsonl").read_text()) == PROMPTS[2]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tag": "colours"}, "tag 'colours' must be one of single_object"),
        ({"tag": 3}, "tag=3 must be str"),
        ({"include": "cat"}, "include='cat' must be list"),
        ({"include": ["cat"]}, "include[0] must be an object"),
        ({"include": [{"class": "cat"}]}, "include[0]: has no 'count'"),
        ({"include": [{"class": "cat", "count": True}]}, "count=True must be int"),
        ({"include": [{"class": "cat", "count": 0}]}, "count=0 must be 1 or more"),
        ({"include": [{**CAT, "color": "grey"}]}, "color 'grey' must be one of red"),
        ({"include": [CAT, {**CAT, "position": ["left", 0]}]}, "include[1]: position=['left', 0]"),
        ({"include": [CAT, {**CAT, "position": ["left of", 1]}]}, "['left of', 1] must be"),
        ({"exclude": [{"count": 1}]}, "exclude[0]: has no 'class'"),
        ({"exclude": {}}, "exclude must be a list"),
        ({"prompt": " "}, "the prompt is empty"),
        ({"prompt": None}, "prompt=None must be str"),
        (PROMPTS[0], "repeats line 1"),
    ],
)
def test_bad_geneval_prompts_are_named_by_line(change, words, tmp_path):
    path = write_lines(tmp_path / "p.jsonl", [PROMPTS[0], PROMPTS[2] | change])
    with fails(words) as caught:
        geneval.read_prompts(path)
    assert str(caught.value).startswith(f"{path}, line 2: ")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"tag": "colors", ', "line 1: no JSON, or cut short"),
        (b"[1]\n", "line 1: must be a JSON object, not list"),
        (b"\n\n", "has no prompts"),
        (b"\xff\xfe", "isn't text in UTF-8"),
        (None, "there is no such file"),
    ],
)
def test_a_file_that_is_no_list_of_prompts(content, words, tmp_path):
    path = tmp_path / "p.jsonl"
    if content is not None:
        path.write_bytes(content)
    with fails(words):
        geneval.read_prompts(epath.Path(path))


# GenEval: rules.


def things(*boxes, score=0.95):
    return [Detection(np.array(box, np.float32), score) for box in boxes]


def test_objects_are_taken_surest_first_above_their_threshold_and_16_at_most():
    found = {
        "cat": [Detection(np.zeros(4), s) for s in (0.3, 0.31, float(np.float32(0.9)), 0.91)],
        "dog": [Detection(np.zeros(4), 0.1)],
        "cup": [Detection(np.zeros(4), 0.5 + i / 64) for i in range(20)],
    }
    chosen = select(found, "colors")
    assert [one.score for one in chosen["cat"]] == [0.91, pytest.approx(0.9), 0.31]
    assert "dog" not in chosen
    assert [one.score for one in chosen["cup"]] == [0.5 + i / 64 for i in range(19, 3, -1)]
    assert [one.score for one in select(found, "counting")["cat"]] == [0.91]


@pytest.mark.parametrize(
    ("shift", "expected"),
    [
        ((0, 0), set()),
        ((-20, 0), set()),  # a tenth of both widths, 100 each, is 20
        ((-40, 0), set()),  # half of the distance lies within the margin
        ((-41, 0), {"left of"}),
        ((41, 0), {"right of"}),
        ((0, -41), {"above"}),
        ((0, 41), {"below"}),
        ((-500, 500), {"left of", "below"}),
        ((500, 240), {"right of"}),  # down by less than half of the distance
    ],
)
def test_position_boundaries(shift, expected):
    here = np.array([300, 300, 400, 400], np.float32)
    assert relations(here + np.array(shift * 2, np.float32), here) == expected


def test_counts():
    two = PROMPTS[1]
    box = (0, 0, 9, 9)
    assert judge({"cat": things(box, box)}, two) == (True, "")
    assert judge({"cat": things(box)}, two) == (False, "cat: 1, must be 2 or more")
    assert judge({"cat": things(box, box, box)}, two) == (False, "cat: 3, must be under 3")
    assert judge({}, two)[0] is False
    assert judge({"cat": things(box, box, box), "dog": things(box)}, PROMPTS[0])[0]


def test_colour_is_asked_of_the_surest_objects_alone():
    prompt = {"include": [{"class": "cat", "count": 2, "color": "red"}]}
    objects = {"cat": things(*[(i, 0, i + 9, 9) for i in range(4)])}

    def colours(names):
        def name_colours(group, name):
            assert (len(group), name) == (2, "cat")
            return [names[int(one.box[0])] for one in group]

        return name_colours

    assert judge(objects, prompt, colours(["red", "red", "blue", "blue"])) == (True, "")
    right, why = judge(objects, prompt, colours(["red", "blue", "red", "red"]))
    assert (right, why) == (False, "cat: red, blue, must be 2 red")


def test_position_needs_every_pair_and_a_target_that_is_met():
    left, middle, right = (0, 0, 50, 50), (200, 0, 250, 50), (400, 0, 450, 50)
    prompt = PROMPTS[3]
    assert judge({"cat": things(right), "dog": things(left)}, prompt) == (True, "")
    # Only the surest dog counts.
    assert judge({"cat": things(middle), "dog": things(left, right)}, prompt)[0]
    assert judge({"cat": things(middle), "dog": things(right, left)}, prompt) == (
        False,
        "dog: right of the other, must be left of it",
    )
    right_of_two = {"include": [{"class": "cat", "count": 2}, prompt["include"][1]]}
    assert judge({"cat": things(middle, right), "dog": things(left)}, right_of_two)[0]
    assert not judge({"cat": things(right, left), "dog": things(middle)}, right_of_two)[0]
    assert judge({"dog": things(left)}, prompt)[1].splitlines() == [
        "cat: 0, must be 1 or more",
        "dog: must be left of what isn't there as asked",
    ]


def test_verdicts_are_the_official_evaluator_s():
    golden = json.loads((GOLDEN / "geneval.json").read_text())["verdicts"]
    assert len(golden) == detection_formula.CASES
    for seed, expected in enumerate(golden):
        boxes, metadata = detection_formula.case(seed)
        found = {name: [Detection(b[:4], b[4]) for b in rows] for name, rows in boxes.items()}
        objects = select(found, metadata["tag"])
        right, why = judge(
            objects, metadata, lambda group, _: [detection_formula.colour(o.box) for o in group]
        )
        counts = [len(objects.get(name, [])) for name in detection_formula.CLASSES]
        assert [right, counts] == expected, (seed, metadata, why)
        assert right == (why == "")


def test_relations_are_the_official_evaluator_s():
    golden = json.loads((GOLDEN / "geneval.json").read_text())["relations"]
    count = detection_formula.PAIRS
    boxes = detection_formula.boxes(np.random.RandomState(0), 2 * count).reshape(count, 2, 5)
    assert [sorted(relations(a[:4], b[:4])) for a, b in boxes] == golden


# GenEval: results.


def result(of, sample, correct, **change):
    return {
        "filename": f"out/{PROMPTS.index(of):05d}/samples/{sample:04d}.png",
        "tag": of["tag"],
        "prompt": of["prompt"],
        "correct": correct,
        "reason": "" if correct else "none",
        "metadata": json.dumps(of),
        "details": "{}",
        **change,
    }


RIGHT = {0: [1, 1], 1: [0, 0], 2: [1, 0], 3: [0, 1]}
RESULTS = [result(PROMPTS[i], s, bool(x)) for i, xs in RIGHT.items() for s, x in enumerate(xs)]


def test_geneval_scores_by_hand(prompts, tmp_path):
    scores = geneval.read_results(write_lines(tmp_path / "r.jsonl", RESULTS), prompts)
    assert scores.tags == {"single_object": 1, "counting": 0, "colors": 0.5, "position": 0.5}
    assert scores.overall == 0.5
    assert scores.prompts_solved == 0.75
    assert (scores.prompts, scores.images) == (4, 8)


def test_each_tag_counts_the_same_however_many_prompts_it_has(tmp_path):
    cases = {tag: [i < 7 for i in range(count)] for tag, count in geneval.PROMPTS.items()}
    lines = []
    for tag, rights in cases.items():
        for i, right in enumerate(rights):
            metadata = {"tag": tag, "include": [CAT], "prompt": f"{tag} {i}"}
            lines.append(result(PROMPTS[0], 0, right, tag=tag, prompt=f"{tag} {i}",
                                metadata=json.dumps(metadata), filename=f"{tag}{i}"))  # fmt: skip
    path = write_lines(tmp_path / "r.jsonl", lines)
    scores = geneval.read_results(path)
    expected = {tag: 7 / count for tag, count in geneval.PROMPTS.items()}
    assert scores.tags == pytest.approx(expected)
    assert scores.overall == pytest.approx(sum(expected.values()) / 6)
    assert scores.prompts == 553
    with fails("another version's (two_object 98 of 99)"):
        geneval.read_results(write_lines(path, lines[:80] + lines[81:]))


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (RESULTS[:-1], "'a photo of a dog left of a cat' has 1 images, another prompt 2"),
        (RESULTS[2:], "1 of 4 prompts are missing; the first is 00000, 'a photo of a cat'"),
        (RESULTS + RESULTS[2:3], "line 9: image out/00001/samples/0000.png is in"),
        (RESULTS + [result(PROMPTS[0], 2, 1)], "line 9: correct=1 must be bool"),
        (RESULTS + [{"filename": "x"}], "line 9: has no 'tag'"),
        (RESULTS + [result(PROMPTS[0], 2, True, tag="color")], "line 9: tag 'color' isn't its"),
        (RESULTS + [result(PROMPTS[0], 2, True, metadata="{")], "line 9: metadata is no JSON"),
        (RESULTS + [result(PROMPTS[0], 2, True, metadata="[]")], "metadata must be an object"),
        (
            [result(PROMPTS[0], 2, True, prompt="x", metadata=json.dumps(PROMPTS[0] | {"prompt": "x"}))],
            "'x' with its metadata is none of the prompts given",
        ),
        ([], "has no results"),
    ],
)  # fmt: skip
def test_bad_geneval_results(lines, words, prompts, tmp_path):
    with fails(words):
        geneval.read_results(write_lines(tmp_path / "r.jsonl", lines), prompts)


def test_results_cut_short_or_of_another_version(prompts, tmp_path):
    path = write_lines(tmp_path / "r.jsonl", RESULTS)
    with fails("prompts are missing, or another version's (single_object 1 of 80, two_object 0 of"):
        geneval.read_results(path)
    path.write_text(path.read_text()[:-30])
    with fails("line 8: no JSON, or cut short"):
        geneval.read_results(path, prompts)


# GenEval: a folder of images.


def grey(value, size=8):
    return Image.fromarray(np.full((size, size, 3), value, np.uint8))


@pytest.fixture
def drawn(prompts, tmp_path):
    """Images as grey as their number, two a prompt."""
    folder = epath.Path(tmp_path / "out")
    for prompt in prompts:
        geneval.write_metadata(folder, prompt)
        for sample in range(2):
            path = geneval.image_path(folder, prompt, sample)
            path.parent.mkdir(exist_ok=True)
            grey(10 * prompt.index + sample).save(path)
        (folder / prompt.name / "grid.png").write_bytes(b"not looked at")
        (folder / prompt.name / "samples" / "notes.txt").write_text("nor this")
    (folder / "log").mkdir()
    return folder


class Detector:
    """One cat in every image, and a second in the last of each prompt; counts its calls."""

    def __init__(self, most=99):
        self.calls, self.most = [], most

    def __call__(self, image):
        if len(self.calls) == self.most:
            raise KeyboardInterrupt
        self.calls.append(int(image[0, 0, 0]))
        return {"cat": things(*[(0, 0, 5, 5)] * (1 + self.calls[-1] % 10))}


def red(image, group, name):
    return ["red"] * len(group)


def test_images_are_judged_and_written_as_the_evaluator_does(drawn, prompts, tmp_path):
    out = epath.Path(tmp_path / "r.jsonl")
    detector = Detector()
    scores = geneval.score_images(drawn, detector, red, out, prompts)
    assert detector.calls == [0, 1, 10, 11, 20, 21, 30, 31]
    assert scores.tags == {"single_object": 1, "counting": 0.5, "colors": 1, "position": 0}
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert lines[3] == {
        "filename": str(drawn / "00001" / "samples" / "0001.png"),
        "tag": "counting",
        "prompt": "a photo of two cats",
        "correct": True,
        "reason": "",
        "metadata": json.dumps(PROMPTS[1]),
        "details": json.dumps({"cat": [[0.0, 0.0, 5.0, 5.0, 0.95]] * 2}),
    }
    assert lines[2]["reason"] == "cat: 1, must be 2 or more"
    assert geneval.read_results(out, prompts) == scores


@pytest.mark.parametrize("torn", [0, 25])
def test_a_killed_scoring_goes_on(torn, drawn, prompts, tmp_path):
    out = epath.Path(tmp_path / "r.jsonl")
    with pytest.raises(KeyboardInterrupt):
        geneval.score_images(drawn, Detector(most=5), red, out, prompts)
    whole = geneval.score_images(drawn, Detector(), red, epath.Path(tmp_path / "w"), prompts)
    out.write_bytes(out.read_bytes()[: -torn or None])
    rest = Detector()
    assert geneval.score_images(drawn, rest, red, out, prompts) == whole
    assert rest.calls == ([20] if torn else []) + [21, 30, 31]
    assert out.read_text() == (tmp_path / "w").read_text()
    assert geneval.score_images(drawn, Detector(most=0), red, out, prompts) == whole


def test_bad_folders_of_images(drawn, prompts, tmp_path):
    out = epath.Path(tmp_path / "r.jsonl")
    idle = Detector(most=0)

    def run(folder=drawn, prompts=prompts):
        geneval.score_images(folder, idle, red, out, prompts)

    with fails("another version's (single_object 1 of 80"):
        run(prompts=None)
    with fails("has no folders 00000, 00001"):
        run(drawn / "00000")
    with fails("has no folders 00000, 00001"):
        run(drawn / "nowhere")
    write_lines(tmp_path / "r.jsonl", [result(PROMPTS[0], 0, True)])
    with fails("out/00000/samples/0000.png is no image of this folder"):
        run()
    out.unlink()
    geneval.image_path(drawn, prompts[1], 1).unlink()
    with fails("'a photo of two cats' has 1 images, another prompt 2"):
        run()
    geneval.image_path(drawn, prompts[1], 0).unlink()
    with fails("samples: has no images 0000.png"):
        run()
    (drawn / "00001" / "metadata.jsonl").write_text("{}\n{}")
    with fails("metadata.jsonl: isn't one JSON object"):
        run()
    (drawn / "00001" / "metadata.jsonl").unlink()
    with fails("metadata.jsonl: there is no such file"):
        run()
    assert not out.exists() and idle.calls == []


def test_an_image_that_cannot_be_read_is_named(drawn, prompts, tmp_path):
    geneval.image_path(drawn, prompts[2], 0).write_bytes(b"png")
    with fails("00002/samples/0000.png: can't be read as an image"):
        geneval.score_images(drawn, Detector(), red, epath.Path(tmp_path / "r"), prompts)


# DPG-Bench: prompts, grids and questions.


def test_dpg_prompts_and_grids(tmp_path):
    folder = epath.Path(tmp_path)
    (folder / "prompts").mkdir()
    (folder / "prompts" / "whoops1.txt").write_text("A cup,\nred.\n")
    (folder / "prompts" / "12.txt").write_text("Two cups")
    prompts = dpg.read_prompts(folder)
    assert [(p.index, p.name, p.text) for p in prompts] == [
        (0, "12", "Two cups"),
        (1, "whoops1", "A cup,\nred."),
    ]
    assert dpg.read_prompts(folder / "prompts") == prompts
    assert dpg.image_path(folder, prompts[1]) == folder / "whoops1.png"
    images = np.arange(4 * 2 * 3 * 3).reshape(4, 2, 3, 3)
    grid = dpg.grid(images)
    assert grid.shape == (4, 6, 3)
    np.testing.assert_array_equal(grid[:2, 3:], images[1])
    np.testing.assert_array_equal(grid[2:, :3], images[2])
    np.testing.assert_array_equal(dpg.tiles(grid), images)
    with pytest.raises(ValueError, match="3 images, a grid has 4"):
        dpg.grid(images[:3])
    (folder / "prompts" / "12.txt").write_text(" \n")
    with fails("12.txt: the prompt is empty"):
        dpg.read_prompts(folder)
    with fails("has no prompts <item_id>.txt"):
        dpg.read_prompts(folder / "nowhere")


def write_questions(folder, text):
    path = folder / "dpg_bench.csv"
    path.write_text(text, newline="")
    return epath.Path(path)


def test_questions(tmp_path):
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
        (",1,0,entity", ",one,0,entity", "line 2: proposition_id 'one' and dependency '0' must be"),
        (',"1, 2",', ',"1; 2",', "line 5: proposition_id '4' and dependency '1; 2' must be"),
        (",1,0,entity", ",1,,entity", "line 2: proposition_id '1' and dependency '' must be"),
        ("global -  (photo, old)", "", "line 6: tuple is empty"),
    ],
)
def test_bad_questions(old, new, words, tmp_path):
    text = question_formula.csv_text("dependent")
    assert old in text
    with fails(words):
        dpg.read_questions(write_questions(tmp_path, text.replace(old, new, 1)))


def test_questions_cut_short(tmp_path):
    text = question_formula.csv_text("dependent")
    with fails("line 27: must have 9 cells; cut short?"):
        dpg.read_questions(write_questions(tmp_path, text[:-90]))
    with fails("has no questions"):
        dpg.read_questions(write_questions(tmp_path, text[: text.index("\n") + 1]))
    with fails("has no column item_id"):
        dpg.read_questions(write_questions(tmp_path, ""))


# DPG-Bench: scores.


def one_item(*parents, item="a", start=0):
    return [Question(start + i, item, i + 1, p, f"kind - {i}", f"{i}?") for i, p in enumerate(parents)]  # fmt: skip


def answered(item, *tiles):
    """{…} from the answers of each tile, "ynn"."""
    words = {"y": "yes", "n": "no", "Y": "Yes"}
    return {
        (item, tile, number): words[letter]
        for tile, letters in enumerate(tiles)
        for number, letter in enumerate(letters, 1)
    }


FIRST = one_item((0,))  # the row that the official script drops


def test_a_child_counts_nothing_without_its_parent():
    questions = one_item((0,), (1,), (2,), (0,), item="b", start=1)
    answers = answered("b", "yyyy", "nyyy", "ynyy", "Yyyn")
    for rule in ("official", "fixed"):
        scores = score(answers, questions, rule)
        assert scores.score == pytest.approx(100 * (4 + 1 + 2 + 0) / 16)
        assert scores.prompts == 1
    # Categories take the answers as they are: "kind - 2" was always answered yes.
    assert score(answers, questions, "fixed").level2 == {
        "kind - 0": 50, "kind - 1": 75, "kind - 2": 100, "kind - 3": 75}  # fmt: skip
    assert score(answers, questions, "fixed").level1 == {"kind": 75}


def test_official_categories_are_of_the_last_tile_alone():
    questions = one_item((0,), (0,), item="b", start=1)
    answers = answered("b", "yy", "yy", "yy", "yn")
    official, fixed = (score(answers, questions, rule) for rule in ("official", "fixed"))
    assert official.score == fixed.score == pytest.approx(100 * 7 / 8)
    assert official.level2 == {"kind - 0": 100, "kind - 1": 0}
    assert fixed.level2 == {"kind - 0": 100, "kind - 1": 75}
    assert (official.level1, fixed.level1) == ({"kind": 50}, {"kind": 87.5})


def test_the_official_rule_drops_the_first_row():
    questions = one_item((0,), (0,)) + one_item((0,), (0,), item="b", start=2)
    answers = answered("a", *["ny"] * 4) | answered("b", *["ny"] * 4)
    official, fixed = (score(answers, questions, rule) for rule in ("official", "fixed"))
    assert official.score == 75  # (1 of 1 + 1 of 2) / 2
    assert fixed.score == 50
    assert (official.left_out, official.prompts) == ((), 2)


def test_the_official_rule_leaves_out_an_item_that_hangs_on_the_first_row():
    questions = one_item((0,), (1,)) + one_item((0,), (0,), item="b", start=2)
    answers = answered("a", *["yy"] * 4) | answered("b", *["ny"] * 4)
    official, fixed = (score(answers, questions, rule) for rule in ("official", "fixed"))
    assert (official.score, official.left_out, official.prompts) == (50, ("a",), 1)
    assert (fixed.score, fixed.left_out, fixed.prompts) == (75, (), 2)
    with fails("the official rule leaves out every item: a"):
        score(answered("a", *["y"] * 4), FIRST, "official")


def test_answers_that_are_missing():
    questions = one_item((0,), (0,))
    answers = answered("a", "yy", "yy", "yy", "yy")
    del answers["a", 2, 1]
    assert score(answers, questions, "official").score == 100  # it never asks that one
    with fails("question 1 of a has no answer on tile 2"):
        score(answers, questions, "fixed")
    with fails("rule 'right' is unknown: choose one of official, fixed"):
        score(answers, questions, "right")


# DPG-Bench: files of the official script, and ours.


@pytest.fixture(params=question_formula.CASES)
def official(request, tmp_path):
    """(case, the script's results, the questions)."""
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


def test_our_official_rule_gives_what_the_official_script_gives(official):
    case, path, questions = official
    ours = score(formula_answers(questions), questions, "official")
    theirs = read_results(path, questions).official
    assert ours.left_out == theirs.left_out == (("partiprompts7",) if case == "dependent" else ())
    assert ours.prompts == theirs.prompts
    assert ours.score == pytest.approx(theirs.score, abs=1e-9)
    assert ours.level1 == pytest.approx(theirs.level1, abs=1e-9)
    assert ours.level2 == pytest.approx(theirs.level2, abs=1e-9)
    assert len(ours.level2) == 5 and 20 < ours.score < 90


def test_official_files_give_the_fixed_score_but_for_the_first_item(official):
    case, path, questions = official
    results = read_results(path, questions)
    rest = questions[6:]
    expected = score(formula_answers(rest), rest, "fixed")
    assert results.fixed.score == pytest.approx(expected.score)
    assert results.fixed.level2 == expected.level2
    assert results.fixed.left_out == ("partiprompts7",)
    assert results.notes[-1].startswith("the fixed scores leave out partiprompts7: the official")
    assert len(results.notes) == (2 if case == "dependent" else 1)


def test_without_answers_there_is_no_fixed_score(official):
    _, path, questions = official
    (path.parent / "run_results_detail.txt").unlink()
    results = read_results(path, questions)
    assert results.fixed is None
    assert results.notes[-1].endswith("need the answers, which run_results_detail.txt would have")
    with fails("of the benchmark's 1065; the official script leaves out one at most"):
        read_results(path)


def test_official_results_of_the_whole_benchmark_need_no_questions(tmp_path):
    lines = [f"x/{i}.png, 1.0, 0.5, 0.0, 0.5, 0.5\n" for i in range(1064)]
    tail = ["Model: x\n", "L1 category scores:\n", "\tglobal: 50.0\n", "L2 category scores:\n"]
    tail += ["\tglobal -: 50.0\n", "Image path: x\n", "DPG-Bench score: 50.0\n"]
    path = epath.Path(tmp_path / "r.txt")
    path.write_text("".join(lines + tail))
    results = read_results(path)
    assert (results.official.score, results.official.prompts) == (50, 1064)
    assert (results.official.level1, results.official.level2) == ({"global": 50}, {"global -": 50})
    assert results.notes == ("the fixed scores need the questions: dpg_bench.csv",)


def test_mixed_up_categories_are_noted(official):
    _, path, questions = official
    path.write_text(re.sub(r"(\tother - count: )\S+", r"\g<1>1.5", path.read_text()))
    assert "in several processes the script mixes" in read_results(path, questions).notes[-1]


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("", lambda s: s[: s.index("Model")], "has no line 'DPG-Bench score: …'"),
        ("", lambda s: s.replace("images/12", "images/13"), "13 is no item of the questions given"),
        ("", lambda s: s[s.index("\n") + 1 :], "isn't the mean of its images"),
        ("", lambda s: "images/12.png, 0.5\n" + s, "line 1: 0 scores and their mean, must be 4"),
        ("", lambda s: "images/12.png\n" + s, "line 1: must be an image and its scores"),
        ("", lambda s: s[: s.index("\n") + 1] + s, "12 has scores already"),
        ("_detail", lambda s: s[:-20], "isn't the question that comes next for whoops1"),
        ("_detail", lambda s: s.replace("(0, 0,", "(0 0,", 1), "line 1: must be image, tile"),
        ("_detail", lambda s: s.replace(", yes\n", ", no\n"), "isn't that of the answers in"),
        ("_detail", lambda s: s + s, "isn't the question that comes next for 12"),
    ],
)
def test_bad_official_files(file, change, words, official):
    _, path, questions = official
    damaged = path.parent / f"run_results{file}.txt"
    before = damaged.read_text()
    damaged.write_text(change(before))
    with fails(words):
        read_results(path, questions)


def test_an_official_run_that_lacks_an_image(official):
    _, path, questions = official
    extra = [Question(99, "countbench9", 1, (0,), "global -", "?")]
    with fails("1 of 6 images are missing; the first is countbench9"):
        read_results(path, questions + extra)
    with fails("has answers alone; name run_results.txt, which is read with it"):
        read_results(path.parent / "run_results_detail.txt", questions)


@pytest.fixture
def grids(tmp_path):
    """(folder of grids that say item and tile, the questions)."""
    folder = epath.Path(tmp_path / "grids")
    folder.mkdir()
    for index, item in enumerate(question_formula.ITEMS):
        tiles = np.zeros((4, 4, 4, 3), np.uint8)
        tiles[..., 0], tiles[..., 1] = index, np.arange(4)[:, None, None]
        Image.fromarray(dpg.grid(tiles)).save(folder / f"{item}.png")
    table = write_questions(tmp_path, question_formula.csv_text("dependent"))
    return folder, dpg.read_questions(table)


def make_vqa(most=999):
    calls = []

    def vqa(image, question):
        assert image.shape == (4, 4, 3) and np.ptp(image[..., 1]) == 0
        if len(calls) == most:
            raise KeyboardInterrupt
        calls.append(question)
        return question_formula.answer(question_formula.ITEMS[image[0, 0, 0]], image[0, 0, 1], question)  # fmt: skip

    return vqa, calls


def test_images_are_asked_every_question_once_also_after_a_kill(grids, tmp_path):
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
    assert results.notes == ("the official score leaves out partiprompts7, as its script does",)
    with pytest.raises(KeyboardInterrupt):
        dpg.answer_images(folder, questions, make_vqa(most=31)[0], out)
    out.write_bytes(out.read_bytes()[:-5])
    vqa, calls = make_vqa()
    assert dpg.answer_images(folder, questions, vqa, out) == scores
    assert len(calls) == 4 * len(questions) - 30
    assert out.read_text() == whole.read_text()


def test_grids_and_answers_that_do_not_fit(grids, tmp_path):
    folder, questions = grids
    out = epath.Path(tmp_path / "a.jsonl")
    vqa = make_vqa()[0]
    with fails("1 of 6 images are missing; the first is new.png"):
        dpg.answer_images(folder, questions + one_item((0,), item="new"), vqa, out)
    write_lines(tmp_path / "a.jsonl", [dict(item_id="12", tile=0, proposition_id=9, answer="no")])
    with fails("answers question 9 of 12, which isn't asked here"):
        dpg.answer_images(folder, questions, vqa, out)
    with fails("4 of 5 images are missing; the first is partiprompts7"):
        read_results(out, questions)
    with fails("answers are scored with their questions: name dpg_bench.csv"):
        read_results(out)
    out.unlink()
    grey(0, size=7).save(folder / "12.png")
    with fails("12.png: (7, 7) can't be a grid of 2×2 images"):
        dpg.answer_images(folder, questions, vqa, out)
    (folder / "12.png").write_bytes(b"png")
    with fails("12.png: can't be read as an image"):
        dpg.answer_images(folder, questions, vqa, out)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tile": 4}, "line 2: tile=4 must be 0 to 3"),
        ({"tile": "1"}, "line 2: tile='1' must be int"),
        ({"answer": None}, "line 2: answer=None must be str"),
        ({"item_id": 12}, "line 2: item_id=12 must be str"),
        ({}, "line 2: that question of that tile has an answer already"),
    ],
)
def test_bad_answers(change, words, tmp_path):
    line = dict(item_id="12", tile=0, proposition_id=1, answer="yes")
    path = write_lines(tmp_path / "a.jsonl", [line, {**line, **change}])
    with fails(words):
        dpg.read_answers(path)

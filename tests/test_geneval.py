"""GenEval: prompts, rules and scores, by hand and as the public evaluator has them."""

import json
import os

import pytest
from benchmarks import CAT, PROMPTS, detections, grey_image, raises_user_error, write_lines
from etils import epath

from tp_jax.evals.geneval import prompts as layout
from tp_jax.evals.geneval import results as geneval

# Prompts.


@pytest.fixture
def prompts(tmp_path):
    return layout.read_prompts(write_lines(tmp_path / "evaluation_metadata.jsonl", PROMPTS))


def test_geneval_prompts_keep_their_metadata_and_number_their_folders(prompts):
    assert [prompt.metadata for prompt in prompts] == PROMPTS
    assert [prompt.name for prompt in prompts] == ["00000", "00001", "00002", "00003"]
    assert [prompt.index for prompt in prompts] == [0, 1, 2, 3]
    assert prompts[3].text == "a photo of a dog left of a cat"


def test_geneval_layout_is_the_evaluator_s(prompts, tmp_path):
    out = epath.Path(tmp_path / "out")
    path = layout.image_path(out, prompts[2], 3)
    assert path.relative_to(out).as_posix() == "00002/samples/0003.png"
    layout.write_metadata(out, prompts[2])
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
    with raises_user_error(words) as caught:
        layout.read_prompts(path)
    assert str(caught.value).startswith(f"{path}, line 2: ")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"tag": "colors", ', "line 1: invalid or truncated JSON"),
        (b"[1]\n", "line 1: must be a JSON object, not list"),
        (b"\n\n", "has no prompts"),
        (b"\xff\xfe", "isn't UTF-8 text"),
        (None, "there is no such file"),
    ],
)
def test_a_file_that_is_no_list_of_prompts(content, words, tmp_path):
    path = tmp_path / "p.jsonl"
    if content is not None:
        path.write_bytes(content)
    with raises_user_error(words):
        layout.read_prompts(epath.Path(path))


# Results.


TAGS = [prompt["tag"] for prompt in PROMPTS]


def result(of, sample, correct, **change):
    return {
        "filename": f"out/{TAGS.index(of['tag']):05d}/samples/{sample:04d}.png",
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
    cases = {tag: [i < 7 for i in range(count)] for tag, count in layout.PROMPTS.items()}
    lines = []
    for tag, rights in cases.items():
        for i, right in enumerate(rights):
            metadata = {"tag": tag, "include": [CAT], "prompt": f"{tag} {i}"}
            lines.append(result(PROMPTS[0], 0, right, tag=tag, prompt=f"{tag} {i}",
                                metadata=json.dumps(metadata), filename=f"{tag}{i}"))  # fmt: skip
    path = write_lines(tmp_path / "r.jsonl", lines)
    scores = geneval.read_results(path)
    expected = {tag: 7 / count for tag, count in layout.PROMPTS.items()}
    assert scores.tags == pytest.approx(expected)
    assert scores.overall == pytest.approx(sum(expected.values()) / 6)
    assert scores.prompts == 553
    with raises_user_error("another version's (two_object 98 of 99)"):
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
            [result(PROMPTS[0] | {"prompt": "x"}, 0, True)],
            "'x' with its metadata is none of the prompts given",
        ),
        ([], "has no results"),
    ],
)  # fmt: skip
def test_bad_geneval_results(lines, words, prompts, tmp_path):
    with raises_user_error(words):
        geneval.read_results(write_lines(tmp_path / "r.jsonl", lines), prompts)


def test_results_cut_short_or_of_another_version(prompts, tmp_path):
    path = write_lines(tmp_path / "r.jsonl", RESULTS)
    with raises_user_error(
        "prompts are missing, or another version's (single_object 1 of 80, two_object 0 of"
    ):
        geneval.read_results(path)
    path.write_text(path.read_text()[:-30])
    with raises_user_error("line 8: invalid or truncated JSON"):
        geneval.read_results(path, prompts)


# A folder of images.


@pytest.fixture
def drawn(prompts, tmp_path):
    """Images as grey as their number, two a prompt."""
    folder = epath.Path(tmp_path / "out")
    for prompt in prompts:
        layout.write_metadata(folder, prompt)
        for sample in range(2):
            path = layout.image_path(folder, prompt, sample)
            path.parent.mkdir(exist_ok=True)
            grey_image(10 * prompt.index + sample).save(path)
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
        return {"cat": detections(*[(0, 0, 5, 5)] * (1 + self.calls[-1] % 10))}


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


@pytest.mark.parametrize("torn", [0, 1, 25])
def test_a_killed_scoring_goes_on(torn, drawn, prompts, tmp_path):
    out = epath.Path(tmp_path / "r.jsonl")
    with pytest.raises(KeyboardInterrupt):
        geneval.score_images(drawn, Detector(most=5), red, out, prompts)
    whole = geneval.score_images(drawn, Detector(), red, epath.Path(tmp_path / "w"), prompts)
    out.write_bytes(out.read_bytes()[: -torn or None])
    rest = Detector()
    assert geneval.score_images(drawn, rest, red, out, prompts) == whole
    assert rest.calls == ([20] if torn > 1 else []) + [21, 30, 31]
    assert out.read_text() == (tmp_path / "w").read_text()
    assert geneval.score_images(drawn, Detector(most=0), red, out, prompts) == whole


def test_verdicts_on_images_drawn_since_are_refused(drawn, prompts, tmp_path):
    out = epath.Path(tmp_path / "r.jsonl")
    geneval.score_images(drawn, Detector(), red, out, prompts)
    os.utime(out, (1, 1))
    with raises_user_error("00000/samples/0000.png was drawn after its verdict in"):
        geneval.score_images(drawn, Detector(), red, out, prompts)


def test_bad_folders_of_images(drawn, prompts, tmp_path):
    out = epath.Path(tmp_path / "r.jsonl")
    idle = Detector(most=0)

    def run(folder=drawn, prompts=prompts):
        geneval.score_images(folder, idle, red, out, prompts)

    with raises_user_error("another version's (single_object 1 of 80"):
        run(prompts=None)
    with raises_user_error("has no folders 00000, 00001"):
        run(drawn / "00000")
    with raises_user_error("has no folders 00000, 00001"):
        run(drawn / "nowhere")
    write_lines(tmp_path / "r.jsonl", [result(PROMPTS[0], 0, True)])
    with raises_user_error("out/00000/samples/0000.png is no image of this folder"):
        run()
    out.write_text("my notes")
    with raises_user_error("r.jsonl: isn't a JSONL file; name another file"):
        run()
    assert out.read_text() == "my notes"
    out.unlink()
    layout.image_path(drawn, prompts[1], 1).unlink()
    with raises_user_error("'a photo of two cats' has 1 images, another prompt 2"):
        run()
    layout.image_path(drawn, prompts[1], 0).unlink()
    with raises_user_error("samples: has no images 0000.png"):
        run()
    (drawn / "00001" / "metadata.jsonl").write_text("{}\n{}")
    with raises_user_error("metadata.jsonl: isn't one JSON object"):
        run()
    (drawn / "00001" / "metadata.jsonl").unlink()
    with raises_user_error("metadata.jsonl: there is no such file"):
        run()
    assert not out.exists() and idle.calls == []


def test_an_image_that_cannot_be_read_is_named(drawn, prompts, tmp_path):
    layout.image_path(drawn, prompts[2], 0).write_bytes(b"png")
    with raises_user_error("00002/samples/0000.png can't be read as an image"):
        geneval.score_images(drawn, Detector(), red, epath.Path(tmp_path / "r"), prompts)

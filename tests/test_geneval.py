"""GenEval: prompts, results files, scores, and judging a folder of images."""

import json
import os

import pytest
from benchmarks import CAT, PROMPTS, detections, grey_image, raises_user_error, write_lines
from etils import epath

from tp_jax.evals.geneval import layout
from tp_jax.evals.geneval import results as geneval
from tp_jax.evals.geneval.prompts import PROMPTS_PER_TAG, read_prompts

# Prompts


@pytest.fixture
def prompts(tmp_path):
    return read_prompts(write_lines(tmp_path / "evaluation_metadata.jsonl", PROMPTS))


def test_prompts_keep_their_metadata_and_are_numbered(prompts):
    assert [prompt.metadata for prompt in prompts] == PROMPTS
    assert [prompt.name for prompt in prompts] == ["00000", "00001", "00002", "00003"]
    assert [prompt.index for prompt in prompts] == [0, 1, 2, 3]
    assert prompts[3].text == "a photo of a dog left of a cat"


def test_image_folders_have_the_layout_of_the_official_evaluator(prompts, tmp_path):
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
        ({"include": ["cat"]}, "include[0] must be an object with"),
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
def test_wrong_prompts_are_refused_with_their_line(change, words, tmp_path):
    path = write_lines(tmp_path / "p.jsonl", [PROMPTS[0], PROMPTS[2] | change])
    with raises_user_error(words) as caught:
        read_prompts(path)
    assert str(caught.value).startswith(f"{path}, line 2: ")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"tag": "colors", ', "line 1: invalid or truncated JSON"),
        (b"[1]\n", "line 1: must be a JSON object, not list"),
        (b"\n\n", "contains no prompts"),
        (b"\xff\xfe", "isn't UTF-8 text"),
        (None, "there is no such file"),
    ],
)
def test_files_without_prompts_are_refused(content, words, tmp_path):
    path = tmp_path / "p.jsonl"
    if content is not None:
        path.write_bytes(content)
    with raises_user_error(words):
        read_prompts(epath.Path(path))


# Results


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


def test_scores_match_a_computation_by_hand(prompts, tmp_path):
    scores = geneval.read_results(write_lines(tmp_path / "r.jsonl", RESULTS), prompts)
    assert scores.tags == {"single_object": 1, "counting": 0, "colors": 0.5, "position": 0.5}
    assert scores.overall == 0.5
    assert scores.prompts_solved == 0.75
    assert (scores.prompts, scores.images) == (4, 8)


def test_each_tag_has_the_same_weight_in_the_overall_score(tmp_path):
    cases = {tag: [i < 7 for i in range(count)] for tag, count in PROMPTS_PER_TAG.items()}
    lines = []
    for tag, rights in cases.items():
        for i, right in enumerate(rights):
            metadata = {"tag": tag, "include": [CAT], "prompt": f"{tag} {i}"}
            lines.append(result(PROMPTS[0], 0, right, tag=tag, prompt=f"{tag} {i}",
                                metadata=json.dumps(metadata), filename=f"{tag}{i}"))  # fmt: skip
    path = write_lines(tmp_path / "r.jsonl", lines)
    scores = geneval.read_results(path)
    expected = {tag: 7 / count for tag, count in PROMPTS_PER_TAG.items()}
    assert scores.tags == pytest.approx(expected)
    assert scores.overall == pytest.approx(sum(expected.values()) / 6)
    assert scores.prompts == 553
    with raises_user_error("another version of GenEval (two_object 98 of 99)"):
        geneval.read_results(write_lines(path, lines[:80] + lines[81:]))


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (RESULTS[:-1], "'a photo of a dog left of a cat' has 1 images, but another prompt has 2"),
        (RESULTS[2:], "1 of 4 prompts are missing; the first is 00000, 'a photo of a cat'"),
        (RESULTS + RESULTS[2:3], "line 9: image out/00001/samples/0000.png is already in"),
        (RESULTS + [result(PROMPTS[0], 2, 1)], "line 9: correct=1 must be bool"),
        (RESULTS + [{"filename": "x"}], "line 9: has no 'tag'"),
        (RESULTS + [result(PROMPTS[0], 2, True, tag="color")], "line 9: tag 'color' differs from"),
        (RESULTS + [result(PROMPTS[0], 2, True, metadata="{")], "metadata isn't valid JSON"),
        (RESULTS + [result(PROMPTS[0], 2, True, metadata="[]")], "metadata must be a JSON object"),
        (
            [result(PROMPTS[0] | {"prompt": "x"}, 0, True)],
            "'x' with its metadata isn't one of the expected prompts",
        ),
        ([], "contains no results"),
    ],
)  # fmt: skip
def test_wrong_results_are_refused(lines, words, prompts, tmp_path):
    with raises_user_error(words):
        geneval.read_results(write_lines(tmp_path / "r.jsonl", lines), prompts)


def test_truncated_results_and_other_versions_are_refused(prompts, tmp_path):
    path = write_lines(tmp_path / "r.jsonl", RESULTS)
    with raises_user_error(
        "prompts are missing or belong to another version of GenEval (single_object 1 of 80,"
    ):
        geneval.read_results(path)
    path.write_text(path.read_text()[:-30])
    with raises_user_error("line 8: invalid or truncated JSON"):
        geneval.read_results(path, prompts)


# A folder of images


@pytest.fixture
def images(prompts, tmp_path):
    """A folder with two images per prompt; the grey level encodes prompt and sample."""
    folder = epath.Path(tmp_path / "out")
    for prompt in prompts:
        layout.write_metadata(folder, prompt)
        for sample in range(2):
            path = layout.image_path(folder, prompt, sample)
            path.parent.mkdir(exist_ok=True)
            grey_image(10 * prompt.index + sample).save(path)
        (folder / prompt.name / "grid.png").write_bytes(b"ignored")
        (folder / prompt.name / "samples" / "notes.txt").write_text("ignored")
    (folder / "log").mkdir()
    return folder


class Detector:
    """Finds one cat in the first image of each prompt and two in the second; records its calls."""

    def __init__(self, most=99):
        self.calls, self.most = [], most

    def __call__(self, image):
        if len(self.calls) == self.most:
            raise KeyboardInterrupt
        self.calls.append(int(image[0, 0, 0]))
        return {"cat": detections(*[(0, 0, 5, 5)] * (1 + self.calls[-1] % 10))}


def red(image, group, name):
    return ["red"] * len(group)


def test_images_are_judged_and_results_written_as_by_the_evaluator(images, prompts, tmp_path):
    out = epath.Path(tmp_path / "r.jsonl")
    detector = Detector()
    scores = geneval.score_images(images, detector, red, out, prompts)
    assert detector.calls == [0, 1, 10, 11, 20, 21, 30, 31]
    assert scores.tags == {"single_object": 1, "counting": 0.5, "colors": 1, "position": 0}
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert lines[3] == {
        "filename": str(images / "00001" / "samples" / "0001.png"),
        "tag": "counting",
        "prompt": "a photo of two cats",
        "correct": True,
        "reason": "",
        "metadata": json.dumps(PROMPTS[1]),
        "details": json.dumps({"cat": [[0.0, 0.0, 5.0, 5.0, 0.95]] * 2}),
    }
    assert lines[2]["reason"] == "cat: 1, must be 2 or more"
    assert geneval.read_results(out, prompts) == scores


@pytest.mark.parametrize("cut", [0, 1, 25])
def test_interrupted_scoring_resumes(cut, images, prompts, tmp_path):
    out = epath.Path(tmp_path / "r.jsonl")
    with pytest.raises(KeyboardInterrupt):
        geneval.score_images(images, Detector(most=5), red, out, prompts)
    whole = geneval.score_images(images, Detector(), red, epath.Path(tmp_path / "w"), prompts)
    out.write_bytes(out.read_bytes()[: -cut or None])
    rest = Detector()
    assert geneval.score_images(images, rest, red, out, prompts) == whole
    assert rest.calls == ([20] if cut > 1 else []) + [21, 30, 31]
    assert out.read_text() == (tmp_path / "w").read_text()
    assert geneval.score_images(images, Detector(most=0), red, out, prompts) == whole


def test_verdicts_older_than_their_image_are_refused(images, prompts, tmp_path):
    out = epath.Path(tmp_path / "r.jsonl")
    geneval.score_images(images, Detector(), red, out, prompts)
    os.utime(out, (1, 1))
    with raises_user_error("00000/samples/0000.png is newer than its verdict in"):
        geneval.score_images(images, Detector(), red, out, prompts)


def test_wrong_image_folders_are_refused(images, prompts, tmp_path):
    out = epath.Path(tmp_path / "r.jsonl")
    idle = Detector(most=0)

    def run(folder=images, prompts=prompts):
        geneval.score_images(folder, idle, red, out, prompts)

    with raises_user_error("another version of GenEval (single_object 1 of 80"):
        run(prompts=None)
    with raises_user_error("has no folders 00000, 00001"):
        run(images / "00000")
    with raises_user_error("has no folders 00000, 00001"):
        run(images / "nowhere")
    write_lines(tmp_path / "r.jsonl", [result(PROMPTS[0], 0, True)])
    with raises_user_error("out/00000/samples/0000.png isn't an image of this folder"):
        run()
    out.write_text("my notes")
    with raises_user_error("r.jsonl: isn't a JSONL file; name another file"):
        run()
    assert out.read_text() == "my notes"
    out.unlink()
    layout.image_path(images, prompts[1], 1).unlink()
    with raises_user_error("'a photo of two cats' has 1 images, but another prompt has 2"):
        run()
    layout.image_path(images, prompts[1], 0).unlink()
    with raises_user_error("samples: has no images 0000.png"):
        run()
    (images / "00001" / "metadata.jsonl").write_text("{}\n{}")
    with raises_user_error("metadata.jsonl: must be one JSON object"):
        run()
    (images / "00001" / "metadata.jsonl").unlink()
    with raises_user_error("metadata.jsonl: there is no such file"):
        run()
    assert not out.exists() and idle.calls == []


def test_unreadable_image_is_named(images, prompts, tmp_path):
    layout.image_path(images, prompts[2], 0).write_bytes(b"png")
    with raises_user_error("00002/samples/0000.png can't be read as an image"):
        geneval.score_images(images, Detector(), red, epath.Path(tmp_path / "r"), prompts)

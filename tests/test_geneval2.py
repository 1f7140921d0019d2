"""GenEval 2: Soft-TIFA as the official analysis computes it, and images in its format."""

import json
import pathlib

import pytest
from conftest import run_entry
from geneval2_formula import answers, prompts

GOLDEN = pathlib.Path(__file__).parent / "golden" / "geneval2.json"


@pytest.fixture
def files(tmp_path):
    """Prompts, and the answers to their questions."""
    data, scores = tmp_path / "data.jsonl", tmp_path / "scores.json"
    data.write_text("".join(json.dumps(line) + "\n" for line in prompts()))
    scores.write_text(json.dumps(answers()))
    return data, scores


def test_scores_are_those_of_the_official_analysis(files, tmp_path):
    data, scores = files
    out = tmp_path / "out.json"
    flags = ["--suite=geneval2", f"--results={scores}", f"--prompts={data}", f"--out={out}"]
    code, stdout, stderr = run_entry("evaluate", *flags)
    assert code == 0, stderr
    found, wanted = json.loads(out.read_text()), json.loads(GOLDEN.read_text())
    for name in ("am", "gm"):
        assert 100 * found[name] == pytest.approx(wanted[name], rel=1e-9)
    for name in ("skills", "atoms"):
        assert {k: 100 * v for k, v in found[name].items()} == pytest.approx(wanted[name], rel=1e-9)
    assert f"Soft-TIFA GM, prompts   {wanted['gm']:8.2f}" in stdout
    assert found["prompts"] == 40


def test_images_are_written_with_their_list(files, trained_shapes, tmp_path):
    # The model of Shapes knows few words.
    data = tmp_path / "words.jsonl"
    lines = [line | {"prompt": f"a red {shape}"} for line, shape in
             zip(prompts(3), ("circle", "square", "ring"), strict=True)]  # fmt: skip
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "images"
    flags = ["--suite=geneval2", "--make", f"--workdir={trained_shapes}", f"--prompts={data}"]
    code, _, stderr = run_entry("evaluate", *flags, f"--out={out}", "--batch_size=4")
    assert code == 0, stderr
    listed = json.loads((out / "images.json").read_text())
    assert list(listed) == [line["prompt"] for line in lines]
    assert list(listed.values()) == [str(out / f"0000{i}.png") for i in range(3)]
    assert all(pathlib.Path(path).exists() for path in listed.values())
    code, _, stderr = run_entry("evaluate", *flags, f"--out={out}", "--samples_per_prompt=2")
    assert code == 2 and "--samples_per_prompt=2: must be 1 for geneval2" in stderr


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (lambda data, scores: data[0].pop("skills"), "skills"),
        (lambda data, scores: data[0]["skills"].append("object"), "equally many entries"),
        (lambda data, scores: data[1].update(skills=["taste"] * 5), "skill 'taste' must be one of"),
        (lambda data, scores: data[2].update(prompt=data[0]["prompt"]), "repeats line 1"),
        (lambda data, scores: data.pop(), "scores.json has 40 entries, but there are 39 prompts"),
        (lambda data, scores: scores[4].pop(), "prompt 00004, 'things of kind 4', needs . numbers"),
        (lambda data, scores: scores[4].__setitem__(0, 1.5), "needs . numbers from 0 to 1"),
        (lambda data, scores: scores.__setitem__(4, 0.5), "not 0.5: score with --method=soft_tifa"),
    ],
)
def test_files_that_do_not_fit_are_refused(changes, match, files, refused):
    data, scores = prompts(), answers()
    changes(data, scores)
    files[0].write_text("".join(json.dumps(line) + "\n" for line in data))
    files[1].write_text(json.dumps(scores))
    flags = (f"--results={files[1]}", f"--prompts={files[0]}")
    refused("evaluate", "--suite=geneval2", *flags, match=match)

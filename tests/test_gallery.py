"""Pages of results, and the badges of the notebooks, are what notebooks/make_gallery.py writes."""

import base64
import io
import json
import pathlib
import runpy
import shutil

import numpy as np
import pytest
from PIL import Image

ROOT = pathlib.Path(__file__).parents[1]
SCRIPT = runpy.run_path(str(ROOT / "notebooks" / "make_gallery.py"))
COMMIT = "git+https://github.com/someone/tp_jax.git@1a2b3c"
BADGE = "https://colab.research.google.com/github/someone/tp_jax/blob/1a2b3c/notebooks/"


@pytest.fixture
def copy(tmp_path):
    """A copy of the files that the script reads."""
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    shutil.copyfile(ROOT / "README.md", tmp_path / "README.md")
    return tmp_path


def results(mean, std=0.02, control=0.5):
    """Scores of three seeds, with these of the thinking variant."""

    def scores(value, spread):
        both = {"overall mean": value, "overall colors": 0.1, "seen mean": 0.9}
        return {"mean": both, "std": dict.fromkeys(both, spread), "runs": {}}

    variants = {"base": scores(0.5, 0.0), "lora": scores(control, 0.0), "think": scores(mean, std)}
    return {"suite": "shapes", "seeds": ["0", "1", "2"], "variants": variants}


def write_results(root, **files):
    folder = root / "notebooks" / "results"
    shutil.rmtree(folder)
    folder.mkdir()
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


def test_the_pages_are_what_the_script_writes():
    for path, text in SCRIPT["pages"](ROOT).items():
        assert path.read_text() == text, "run: python notebooks/make_gallery.py"


def test_pages_follow_the_results(copy):
    write_results(copy, shapes=results(0.523, 0.0213))
    pages = SCRIPT["pages"](copy)
    readme = pages[copy / "README.md"]
    table = "| Shapes, hard scenes, correct images | 50.0 ± 0.0 % | 52.3 ± 2.1 % | [3 seeds]"
    assert readme.count(table) == 1
    page = pages[copy / "notebooks" / "results" / "README.md"]
    # Only the first group of rows; the others are in the table of the suite.
    assert "| overall colors | 10.0 ± 0.0 |" in page and "seen mean" not in page
    # What stands around the part is kept, and nothing of the earlier results stays.
    before, _, rest = (copy / "README.md").read_text().partition(SCRIPT["START"])
    assert readme.startswith(before) and readme.endswith(rest.partition(SCRIPT["END"])[2])
    assert "FrozenLake, earlier" not in readme and "the paper; not" not in readme


@pytest.mark.parametrize(
    ("mean", "expected"),
    [
        (
            0.53,
            "changes the score by +3.0 points, more than the spread over seeds (± 2.0)",
        ),
        (0.49, "changes the score by -1.0 points, within the spread over seeds (± 2.0)"),
    ],
)
def test_the_verdict_follows_the_spread(copy, mean, expected):
    write_results(copy, shapes=results(mean, control=0.7))
    readme = SCRIPT["pages"](copy)[copy / "README.md"]
    assert expected in readme
    assert (
        "Compared with plain LoRA with as many parameters (70.0 ± 0.0 %), the change is -" in readme
    )


def test_a_picture_of_a_suite_is_shown_with_its_name(copy):
    write_results(copy, shapes=results(0.5))
    (copy / "notebooks/results/shapes-new.png").touch()
    page = SCRIPT["pages"](copy)[copy / "notebooks/results/README.md"]
    assert "![shapes-new](shapes-new.png)" in page


def test_missing_markers_are_named(copy):
    (copy / "README.md").write_text("# tp_jax")
    with pytest.raises(SystemExit, match=r"README.md lacks the two markers"):
        SCRIPT["pages"](copy)


@pytest.mark.parametrize(
    ("install", "shown"),
    [
        ("", False),
        (COMMIT, True),
        ("/content/drive/MyDrive/tp_jax", False),
        ("git+https://example.org/someone/tp_jax@1a2b3c", False),
    ],
)
def test_a_badge_needs_a_commit_on_github(copy, install, shown):
    # Setting a value twice, or another one before, leaves nothing behind.
    for value in (COMMIT, install, install):
        for path, text in SCRIPT["pages"](copy, value).items():
            path.write_text(text)
    for path in (copy / "notebooks").glob("*.ipynb"):
        text = path.read_text()
        assert text.count(f"{BADGE}{path.name})") == shown
        assert ("colab-badge.svg" in text) == shown
        assert SCRIPT["read_install"](json.loads(text)) == install
    assert SCRIPT["pages"](copy)[path] == text


def as_png(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="png")
    return base64.b64encode(buffer.getvalue()).decode()


def test_only_small_pictures_of_a_run_are_kept(copy):
    path = copy / "notebooks" / "sample.ipynb"
    content = json.loads(path.read_text())
    cells = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    for number, cell in enumerate(cells):
        cell["execution_count"] = number
        cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "a log"}]
    random = np.random.default_rng(0)
    small = random.integers(0, 255, (1, 200, 3), np.uint8).repeat(200, axis=0)
    large = random.integers(0, 255, (200, 200, 3), np.uint8)
    for cell, image in zip(cells, (small, large), strict=False):
        picture = {"image/png": as_png(image), "text/plain": "<Figure>"}
        cell["outputs"].append({"output_type": "display_data", "data": picture, "metadata": {}})
    (copy / "runs").mkdir()
    (copy / "runs" / "sample.ipynb").write_text(json.dumps(content))
    changed = json.loads(SCRIPT["pages"](copy, outputs=copy / "runs")[path])
    found = [cell.get("outputs") for cell in changed["cells"] if cell["cell_type"] == "code"]
    assert [len(outputs) for outputs in found] == [1] + [0] * (len(cells) - 1)
    kept = found[0][0]["data"]
    assert set(kept) == {"image/png"} and len(kept["image/png"]) < len(as_png(small))
    with Image.open(io.BytesIO(base64.b64decode(kept["image/png"]))) as image:
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), small)
    assert all(cell.get("execution_count") is None for cell in changed["cells"])

"""Images of one request are never mixed with those of another one, or with other files."""

import json
import pathlib

import numpy as np
import pytest
from conftest import snapshot
from etils import epath

from tp_jax.evals.geneval import layout
from tp_jax.evals.prompt import Prompt
from tp_jax.messages.errors import UserError
from tp_jax.pictures.grids import save_png
from tp_jax.pictures.reading import open_images
from tp_jax.sampling import draw
from tp_jax.sampling.description import changed_field, claim, path_beside
from tp_jax.sampling.draw import Drawing, draw_samples
from tp_jax.sampling.generator import Generator

FIRST = {"seed": 0, "weights": "a", "files": ["0.png", "b/1.png"]}
KINDS = ("folder", "suite", "npz")


class Images:
    """Images of a request, written without a model."""

    def __init__(self, root, kind):
        self.out = epath.Path(root) / ("s.npz" if kind == "npz" else "out")
        self.path = self.out / "drawing.json" if kind == "folder" else path_beside(self.out)
        self.also = {"folder": ("grid.png",), "suite": (), "npz": ("s.npz.parts",)}[kind]
        self.npz = kind == "npz"

    def claim(self, overwrite=False, **changes):
        description = FIRST | changes
        if self.npz:
            description["files"] = ["s.npz"]
        claim(self.out, self.path, description, overwrite=overwrite, also=self.also)

    def write(self):
        self.claim()
        names = [self.out, self.out.parent / "s.npz.parts/0.npy"]
        if not self.npz:
            names = [self.out / name for name in (*FIRST["files"], *self.also)]
        for path in names:
            path.parent.mkdir(exist_ok=True)
            path.write_text("image")
        return names


@pytest.fixture(params=KINDS)
def images(request, tmp_path):
    return Images(tmp_path, request.param)


def test_the_same_request_goes_on(images):
    names = images.write()
    images.claim()
    images.claim(overwrite=True)
    assert all(path.read_text() == "image" for path in names)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 1}, "seed was 0, now 1"),
        ({"weights": "b"}, "weights was a, now b"),
        ({"more": "x" * 999}, "more was None, now xxx"),
    ],
)
def test_another_request_is_refused(images, changes, said, tmp_path):
    images.write()
    before = snapshot(tmp_path)
    with pytest.raises(
        UserError, match=f"has images of another run: {said}.*--overwrite$"
    ) as error:
        images.claim(**changes)
    assert len(str(error.value)) < 400
    assert snapshot(tmp_path) == before


def test_overwriting_removes_only_files_that_the_description_lists(images, tmp_path):
    names = images.write()
    others = [tmp_path / "other.png"]
    if not images.npz:
        others += [images.out / "2.png", images.out / "b" / "notes.txt"]
    for path in others:
        path.write_text("mine")
    images.claim(overwrite=True, seed=1)
    assert not any(path.exists() for path in names)
    assert [path.read_text() for path in others] == ["mine"] * len(others)
    assert json.loads(images.path.read_text())["seed"] == 1


def test_a_description_without_images_is_replaced(images):
    images.claim()
    images.claim(seed=1)
    assert json.loads(images.path.read_text())["seed"] == 1


def test_images_without_a_description_are_refused(images, tmp_path):
    images.write()
    images.path.unlink()
    before = snapshot(tmp_path)
    for overwrite in (False,) if images.npz else (False, True):
        with pytest.raises(UserError, match=r"no .*drawing.json.*name a"):
            images.claim(overwrite=overwrite)
    assert snapshot(tmp_path) == before
    if images.npz:  # The user has named the one file.
        images.claim(overwrite=True)
        assert images.path.exists() and not images.out.exists()


def test_images_of_earlier_versions_are_resumed_but_not_removed(tmp_path):
    images = Images(tmp_path, "suite")
    images.write()
    images.path.write_text(json.dumps({"seed": 0}))
    with pytest.raises(UserError, match="seed was 0, now 1; .* or delete .*out$"):
        images.claim(overwrite=True, seed=1)
    images.claim()
    assert json.loads(images.path.read_text()) == FIRST


def test_checkpoints_without_checksums_are_not_told_apart():
    assert changed_field(FIRST | {"weights": None}, FIRST) is None
    assert changed_field({"seed": 0}, FIRST) is None
    assert changed_field(FIRST, FIRST | {"weights": "b"}).name == "weights"


def test_a_stopped_folder_of_pngs_goes_on_with_the_same_bits(trained, tmp_path, monkeypatch):
    whole = Drawing(trained, epath.Path(tmp_path / "whole"), num=7, batch_size=4)
    stopped = Drawing(trained, epath.Path(tmp_path / "stopped"), num=7, batch_size=4)
    draw_samples(whole)
    written = []

    def stopping(path, image):
        if len(written) == 6:
            raise KeyboardInterrupt
        written.append(path)
        save_png(path, image)

    with monkeypatch.context() as patch:
        patch.setattr(draw, "save_png", stopping)
        with pytest.raises(KeyboardInterrupt):
            draw_samples(stopped)
    assert len(list(stopped.out.glob("*_class*.png"))) == 6
    written[5].write_bytes(written[5].read_bytes()[:-20])
    (stopped.out / "mine.png").write_text("mine")
    before = snapshot(stopped.out)
    with pytest.raises(UserError, match="seed was 0, now 1"):
        draw_samples(Drawing(trained, stopped.out, num=7, batch_size=4, seed=1))
    draw_samples(stopped)
    after = snapshot(stopped.out)
    assert all(after[path] == before[path] for path in map(pathlib.Path, written[:5]))
    for path in whole.out.iterdir():
        assert (stopped.out / path.name).read_bytes() == path.read_bytes(), path.name
    # Only the samples are evaluated.
    assert open_images(stopped.out).count == 7


def test_an_npz_that_is_complete_is_not_sampled_again(trained, tmp_path, monkeypatch):
    drawing = Drawing(trained, epath.Path(tmp_path / "a.npz"), num=3, batch_size=4)
    draw_samples(drawing)
    before = snapshot(tmp_path)
    assert sorted(path.name for path in before) == ["a.npz", "a.npz.drawing.json"]
    monkeypatch.delattr("tp_jax.sampling.generator.Generator.batches")
    draw_samples(drawing)
    with pytest.raises(UserError, match="num was 3, now 4"):
        draw_samples(Drawing(trained, drawing.out, num=4, batch_size=4))
    assert snapshot(tmp_path) == before


def test_geneval_images_that_the_description_does_not_list_are_left_out(tmp_path, capsys):
    out, metadata = epath.Path(tmp_path / "out"), {"tag": "single_object", "prompt": "a"}
    metadata |= {"include": [{"class": "bench", "count": 1}]}
    prompts = [Prompt(i, f"{i:05d}", "a", metadata) for i in range(2)]
    for prompt in prompts:
        layout.write_metadata(out, prompt)
        for i in range(2):
            save_png(layout.image_path(out, prompt, i), np.zeros((8, 8, 3), np.uint8))
    (out / "00000/samples/0002.jpg").touch()
    (out / "notes.txt").touch()
    (out / "00000/grid.png").touch()
    assert len(layout.find_images(out)) == 4
    assert f"{out}: 4 images; left out: 2 files (.jpg 1, .txt 1)\n" in capsys.readouterr().err
    files = ["00000/samples/0000.png", "00001/samples/0000.png", "00001/metadata.jsonl"]
    path_beside(out).write_text(json.dumps({"files": files, "images": 2}))
    assert [path.name for path, _ in layout.find_images(out)] == ["0000.png"] * 2
    assert "2 images; left out: 4 files (.png 2, .jpg 1, .txt 1)\n" in capsys.readouterr().err
    path_beside(out).write_text(json.dumps({"files": [*files, "00000/samples/0003.png"]}))
    with pytest.raises(UserError, match="has 2 of 3 images: run the command"):
        layout.find_images(out)


def test_samples_before_one_that_is_not_finite_are_kept(trained, tmp_path, monkeypatch):
    drawing, batches = Drawing(trained, epath.Path(tmp_path / "a.npz"), num=6), Generator.batches

    def with_nan(*arguments, **fields):
        for images in batches(*arguments, **fields):
            yield images[:4]
            yield images[4:] * np.nan

    monkeypatch.setattr(Generator, "batches", with_nan)
    with pytest.raises(UserError, match="sample 4 has the value nan"):
        draw_samples(drawing)
    assert [np.load(path).shape for path in tmp_path.glob("a.npz.parts/*.npy")] == [(4, 8, 8, 1)]

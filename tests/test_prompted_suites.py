"""Suites with prompts: image layouts that the official scorers read, and scores of Shapes."""

import json

import numpy as np
import pytest
from etils import epath
from PIL import Image

from tp_jax.evals import SUITES
from tp_jax.evals.dpg.grids import split_tiles
from tp_jax.evals.geneval import layout
from tp_jax.evals.geneval.prompts import PROMPTS_PER_TAG, read_prompts
from tp_jax.evals.over_seeds import collect
from tp_jax.evals.prompted import PromptedRequest
from tp_jax.evals.shapes import scores as shapes
from tp_jax.evals.shapes.suite import PARTS, columns, score_shapes
from tp_jax.messages.errors import UserError
from tp_jax.pictures.reading import read_rgb
from tp_jax.sampling.generator import Generator
from tp_jax.sampling.loaded import load
from tp_jax.sampling.prompts import encode_prompts
from tp_jax.sampling.request import make_generator
from tp_jax.worlds.shapes.render import render


def make_request(suite, workdir, out, prompts=None, **fields):
    """Return a request to generate the images of a suite with one sampler step."""
    fields = {"batch_size": 4, "sampler_changes": {"steps": 1}} | fields
    return PromptedRequest(workdir, epath.Path(out), suite=suite, prompts=prompts, **fields)


@pytest.fixture
def geneval_prompts(tmp_path):
    path = epath.Path(tmp_path / "evaluation_metadata.jsonl")
    lines = [prompt.metadata for prompt in shapes.make_prompts(per_skill=1)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_geneval_images_have_the_layout_of_its_evaluator(
    trained_shapes, tmp_path, geneval_prompts, monkeypatch
):
    out = tmp_path / "images"
    task = make_request("geneval", trained_shapes, out, geneval_prompts, num=3)
    batches = Generator.batches

    def stopping(*args, **kwargs):
        for number, batch in enumerate(batches(*args, **kwargs)):
            if number == 2:
                raise KeyboardInterrupt
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(Generator, "batches", stopping)
        with pytest.raises(KeyboardInterrupt):
            SUITES[task.suite].load().make_images(task)
    assert len(list(out.rglob("*.png"))) == 8
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    with pytest.raises(UserError, match="another run: seed was 0, now 1"):
        SUITES["geneval"].load().make_images(
            make_request("geneval", trained_shapes, out, geneval_prompts, num=3, seed=1)
        )
    SUITES[task.suite].load().make_images(task)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    prompts = read_prompts(geneval_prompts)
    for prompt in prompts[:3]:
        folder = out / prompt.name
        assert json.loads((folder / "metadata.jsonl").read_text()) == prompt.metadata
        files = sorted(path.name for path in (folder / "samples").iterdir())
        assert files == ["0000.png", "0001.png", "0002.png", "0003.png"]
    found = layout.find_images(epath.Path(out))
    assert len({read_rgb(path).tobytes() for path, _ in found}) == len(found) == 12


def test_dpg_images_are_grids_of_four(trained_shapes, tmp_path):
    folder = tmp_path / "prompts"
    folder.mkdir()
    for name, text in (("b", "two rings"), ("a", "a cross")):
        (folder / f"{name}.txt").write_text(text)
    SUITES["dpg"].load().make_images(
        make_request("dpg", trained_shapes, tmp_path / "images", epath.Path(folder))
    )
    grid = read_rgb(epath.Path(tmp_path / "images" / "a.png"))
    assert grid.shape == (32, 32, 3)
    # The tiles are the samples that the generator yields for the prompt, in order.
    loaded = load(trained_shapes)
    conditions = encode_prompts(loaded, ["a cross"]).conditions
    generator = make_generator(loaded, {"steps": 1}, 4)
    rows = np.zeros(4, int)
    images = next(generator.batches(loaded.params, conditions, 0, 0, rows))
    from tp_jax.pictures.grids import to_uint8

    np.testing.assert_allclose(split_tiles(grid).astype(int), to_uint8(images), atol=1)
    with pytest.raises(UserError, match="--samples_per_prompt=3: must be 4 for dpg"):
        SUITES["dpg"].load().make_images(
            make_request(
                "dpg", trained_shapes, tmp_path / "x", epath.Path(folder), samples_per_prompt=3
            )
        )


def test_shapes_scores_are_computed_from_the_images(trained_shapes, tmp_path, monkeypatch, capsys):
    few = shapes.make_prompts(per_skill=4)
    monkeypatch.setattr(shapes, "make_prompts", lambda **_: few)
    images, out = epath.Path(tmp_path / "out/images"), epath.Path(tmp_path / "out")
    SUITES["shapes"].load().make_images(
        make_request("shapes", trained_shapes, images, samples_per_prompt=1)
    )
    for path, _ in layout.find_images(images):
        Image.new("RGB", (64, 64), "grey").save(path)
    content = score_shapes(images, out)
    assert content["overall"]["images"] == 24 and content["overall"]["overall"] == 0
    # Replace the images of all seen combinations and of one unseen combination by correct ones.
    write_correct_images(images, [prompt for prompt in few if prompt.metadata["seen"]] + few[-1:])
    (out / "results.jsonl").unlink()
    content = score_shapes(images, out)
    assert content["seen"]["overall"] == 1 and set(content["seen"]["tags"]) == set(PROMPTS_PER_TAG)
    assert content["unseen"]["tags"] == dict.fromkeys(
        [tag for tag in PROMPTS_PER_TAG if tag != "single_object"], 0
    ) | {"color_attr": 0.5}
    assert content["overall"]["overall"] == pytest.approx((1 + 0.5 * 4 + 0.75) / 6)
    assert json.loads((out / "scores.json").read_text())["seen"]["images"] == 14
    assert (out / "gallery.png").exists()
    assert "color_attr" in capsys.readouterr().out
    layout.image_path(images, few[-1], 0).unlink()
    with pytest.raises(UserError, match="has no images|has 23 of 24 images"):
        score_shapes(images, out)


def test_scores_are_averaged_over_seeds(tmp_path):
    def write(variant, seed, value, **changes):
        part = {"tags": dict.fromkeys(PROMPTS_PER_TAG, value), "overall": value}
        content = dict.fromkeys(PARTS, part) | changes
        path = tmp_path / variant / seed / "scores.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))

    for seed, value in (("0", 0.1), ("1", 0.3)):
        write("base", seed, value)
        write("think", seed, value + 0.2)
    root, out = epath.Path(tmp_path), epath.Path(tmp_path / "shapes.json")
    content = collect(root, out, "shapes", columns)
    scores = content["variants"]["think"]
    assert scores["mean"]["seen mean"] == pytest.approx(0.4)
    assert scores["std"]["unseen counting"] == pytest.approx(0.1 * 2**0.5)
    assert "| overall mean | 20.0 ± 14.1 | 40.0 ± 14.1 |" in out.with_suffix(".md").read_text()
    (tmp_path / "think/1/scores.json").write_text("{")
    with pytest.raises(UserError, match="think/1/scores.json is damaged"):
        collect(root, out, "shapes", columns)
    write("think", "1", 0.5, unseen=None)
    with pytest.raises(
        UserError, match="think/1/scores.json isn't a complete score file of suite shapes"
    ):
        collect(root, out, "shapes", columns)
    (tmp_path / "think/1/scores.json").unlink()
    with pytest.raises(UserError, match="variants have different seeds"):
        collect(root, out, "shapes", columns)


def write_correct_images(folder, prompts):
    """Render a correct picture for each prompt."""
    from tp_jax.worlds.shapes.scenes import SKILLS, all_requests, make_scene

    rng = np.random.default_rng(0)
    for prompt in prompts:
        request = next(
            one for skill in SKILLS for one in all_requests(skill)
            if one.caption == prompt.text and skill == prompt.metadata["tag"]
        )  # fmt: skip
        picture = render(make_scene(request, rng, only_seen=False), 64)
        path = layout.image_path(folder, prompt, 0)
        Image.fromarray((picture * 255).astype(np.uint8)).save(path)


def test_requests_that_do_not_fit_the_suite_are_refused(trained_shapes, tmp_path, trained):
    for fields, message in (
        (
            dict(suite="geneval"),
            "--prompts is missing: give your copy of evaluation_metadata.jsonl",
        ),
        (dict(suite="shapes", num=0), "--num=0: shapes has 240 prompts"),
        (dict(suite="shapes", samples_per_prompt=0), "--samples_per_prompt=0: must be 1 or"),
        (dict(suite="shapes", height=8), "shapes scores only square images"),
        (
            dict(suite="shapes", workdir=trained),
            "a dit model is conditioned on classes, not on prompts",
        ),
    ):
        fields = {"workdir": trained_shapes, "out": tmp_path / "out"} | fields
        with pytest.raises(UserError, match=message):
            SUITES[fields["suite"]].load().make_images(make_request(**fields))
    assert not (tmp_path / "out").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.txt").write_text("")
    with pytest.raises(
        UserError, match="holds files but no .*drawing.json.*: name a new or empty folder"
    ):
        SUITES["shapes"].load().make_images(
            make_request("shapes", trained_shapes, tmp_path / "mine")
        )

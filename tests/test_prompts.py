"""Models that take text: training on captions, sampling from prompts, benchmarks' images."""

import collections
import json
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from PIL import Image

from tp_jax import config as config_lib
from tp_jax import data
from tp_jax.diffusion import RectifiedFlow, SamplerConfig
from tp_jax.diffusion import sample as draw
from tp_jax.evals import over_seeds as collecting
from tp_jax.evals import prompted as benchmarks
from tp_jax.evals import verdicts
from tp_jax.evals.dpg import questions as dpg
from tp_jax.evals.geneval import results as geneval
from tp_jax.evals.shapes import suite as shapes
from tp_jax.latents.codec import Pooling, load_codec
from tp_jax.messages.errors import UserError
from tp_jax.models import build_model
from tp_jax.models.parameters import abstract_params
from tp_jax.sampling.draw import Drawing, draw_samples
from tp_jax.sampling.generator import Generator
from tp_jax.sampling.loaded import load
from tp_jax.sampling.prompts import encode_prompts, read_prompts
from tp_jax.sampling.request import make_generator
from tp_jax.train.loop import train
from tp_jax.worlds.shapes.checker import find_objects, same_contents
from tp_jax.worlds.shapes.render import render
from tp_jax.worlds.shapes.scenes import training_scene

ROOT = pathlib.Path(__file__).parent.parent
CONFIGS = runpy.run_path(str(ROOT / "configs" / "shapes.py"))


def tiny_shapes():
    """configs/shapes.py, shrunk."""
    config = CONFIGS["get_config"]()
    config.model.update(image_size=8, patch=2, depth=2, width=16, heads=2)
    config.model.update(max_grid=4, base_grid=4)
    config.autoencoder.pool = 2
    config.train.update(steps=2, batch_size=8, log_every=1, sample_every=2, samples=4)
    config.optimizer.warmup_steps = 1
    config.checkpoint.every_steps = 2
    config.sampling.update(steps=2)
    return config


@pytest.fixture(scope="module")
def drawn_from(tmp_path_factory):
    """A workdir of a model that takes text. Read it only."""
    workdir = epath.Path(tmp_path_factory.mktemp("text")) / "run"
    config = tiny_shapes()
    # Enough for what the text says to reach the output, which starts at zero.
    config.train.update(steps=8, ema_decay=0.1)
    config.optimizer.learning_rate = 3e-2
    train(config, workdir)
    return workdir


def test_training_draws_its_own_captions(drawn_from):
    assert (drawn_from / "samples" / "00000008.png").exists()
    config = tiny_shapes()
    source = data.open_source(config)
    encoder = data.open_text(source, config)
    conditions = data.example_conditions(source, encoder, 3)
    captions = [training_scene(index).caption for index in range(3)]
    np.testing.assert_array_equal(conditions["text"], encoder.encode(captions)["text"])


def test_batches_are_the_scenes_and_their_captions():
    config = tiny_shapes()
    source = data.open_source(config)
    encoder = data.open_text(source, config)
    space = Pooling(2).space
    batch = next(data.make_iterator(source, config, space, encoder))
    again = next(data.make_iterator(source, config, space, encoder))
    jax.tree.map(np.testing.assert_array_equal, batch, again)
    assert batch["x"].shape == (8, 16, 16, 3) and batch["x"].dtype == np.float32
    rows = {tuple(row.ravel()) for row in batch["x"]}
    assert len(rows) == 8
    empty = encoder.encode([""])
    np.testing.assert_array_equal(batch["condition"]["null_text"][3], empty["text"][0])
    assert (batch["condition"]["text"][..., : encoder.space.pooled_width].sum((1, 2)) > 1).all()


def test_prompts_make_files_with_captions(drawn_from, tmp_path):
    prompts = ("a red circle", "two rings")
    drawing = Drawing(
        drawn_from, epath.Path(tmp_path / "out"), num=3, prompts=prompts, batch_size=4
    )
    draw_samples(drawing)
    names = sorted(path.name for path in (tmp_path / "out").glob("0*.png"))
    assert names == ["00000_a-red-circle.png", "00001_two-rings.png", "00002_a-red-circle.png"]
    lines = [json.loads(line) for line in (tmp_path / "out/captions.jsonl").open()]
    assert [line["caption"] for line in lines] == ["a red circle", "two rings", "a red circle"]
    assert [line["file"] for line in lines] == names


def test_an_npz_holds_the_prompts_and_one_image_of_each(drawn_from, tmp_path):
    prompts = ("a red circle", "two rings", "a cross")
    draw_samples(Drawing(drawn_from, epath.Path(tmp_path / "a.npz"), prompts=prompts))
    with np.load(tmp_path / "a.npz") as file:
        assert file["arr_0"].shape == (3, 16, 16, 3)
        assert tuple(file["arr_1"]) == prompts


def test_a_prompt_is_drawn_alike_among_others(drawn_from):
    loaded = load(drawn_from)
    generator = make_generator(loaded, {"guidance_scale": 3.0}, 4)

    def drawn(texts, negative=""):
        conditions = encode_prompts(loaded, texts, negative).conditions
        return np.concatenate(list(generator.batches(loaded.params, conditions, 0)))

    alone = drawn(["a cross"])
    np.testing.assert_allclose(drawn(["a cross", "two rings"])[:1], alone, atol=1e-5)
    # The model has learned next to nothing, so texts differ by little.
    assert np.abs(drawn(["a red ring"]) - alone).max() > 1e-6
    assert np.abs(drawn(["a cross"], "two rings") - alone).max() > 1e-6


def test_other_sizes(drawn_from, tmp_path):
    out = epath.Path(tmp_path / "a.npz")
    draw_samples(Drawing(drawn_from, out, prompts=("a cross",), height=8, width=12))
    assert np.load(out)["arr_0"].shape == (1, 8, 12, 3)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({}, '--prompts is missing: a mmdit model takes text; give "text"'),
        ({"prompts": ("a cross",), "labels": (1,)}, "--labels and --uniform are of classes"),
        ({"prompts": ("a dog",)}, "'dog' is no word of this encoder, which knows a, an"),
        ({"prompts": ("a " * 9,)}, "has 9 words, the encoder takes 8: shorten it"),
        ({"prompts": ("a cross",), "height": 30}, "--height=30: give a multiple of 4 up to 16"),
        ({"prompts": ("a cross",), "width": 20}, "--width=20: give a multiple of 4 up to 16"),
        ({"prompts": ("a cross",), "negative_prompt": "a dog"}, "'dog' is no word"),
    ],
)
def test_bad_prompts_and_sizes_are_refused(drawn_from, tmp_path, fields, message):
    with pytest.raises(UserError, match=message):
        draw_samples(Drawing(drawn_from, epath.Path(tmp_path / "out"), **fields))
    assert not (tmp_path / "out").exists()


def test_classes_have_no_prompts(trained, tmp_path):
    for fields, message in (
        ({"prompts": ("a cross",)}, "a dit model draws classes, not prompts: give --labels"),
        ({"negative_prompt": "a"}, "--negative_prompt is of models that take text"),
        ({"height": 8}, "a dit draws the size that it was trained on alone"),
    ):
        with pytest.raises(UserError, match=message):
            draw_samples(Drawing(trained, epath.Path(tmp_path / "out"), **fields))


def test_a_file_of_prompts(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("a cross\n\n  two rings \n")
    assert read_prompts(str(file)) == ("a cross", "two rings")
    assert read_prompts("a cross") == ("a cross",)
    assert read_prompts("a " * 500) == ("a " * 500,)
    with pytest.raises(UserError, match="promts.txt: there is no such file"):
        read_prompts("promts.txt")
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="isn't text in UTF-8"):
        read_prompts(str(file))
    with pytest.raises(UserError, match="is a folder: name a file"):
        read_prompts(str(tmp_path))


def test_text_and_labels_do_not_mix():
    config = tiny_shapes()
    config.data.source = "digits"
    config.model.update(channels=1, image_size=8)
    with pytest.raises(UserError, match="digits has labels, but a mmdit model takes text"):
        data.open_source(config)
    labels = config_lib.default("dit", "flow")
    labels.data.source = "shapes"
    labels.model.update(channels=3, image_size=16)
    with pytest.raises(UserError, match="shapes has captions, but a dit model takes labels"):
        data.open_source(labels)
    config = tiny_shapes()
    config.text.encoder = "sd3"
    with pytest.raises(UserError, match="captions that aren't encoded: python -m tp_jax.prepare"):
        data.open_text(data.open_source(config), config)
    config = tiny_shapes()
    config.model.text_width += 1
    with pytest.raises(UserError, match="config.model.text_width=.*encoder is "):
        data.open_text(data.open_source(config), config)


# Benchmarks


def a_make(suite, workdir, out, prompts=None, **fields):
    fields = {"batch_size": 4, "sampler_changes": {"steps": 1}} | fields
    return benchmarks.Make(workdir, epath.Path(out), suite=suite, prompts=prompts, **fields)


@pytest.fixture
def geneval_prompts(tmp_path):
    path = epath.Path(tmp_path / "evaluation_metadata.jsonl")
    lines = [prompt.metadata for prompt in shapes.prompts(per_skill=1)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_geneval_images_lie_as_its_evaluator_reads_them(
    drawn_from, tmp_path, geneval_prompts, monkeypatch
):
    out = tmp_path / "images"
    task = a_make("geneval", drawn_from, out, geneval_prompts, num=3)
    batches = Generator.batches

    def stopping(*args, **kwargs):
        for number, batch in enumerate(batches(*args, **kwargs)):
            if number == 2:
                raise KeyboardInterrupt
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(Generator, "batches", stopping)
        with pytest.raises(KeyboardInterrupt):
            benchmarks.make(task)
    assert len(list(out.rglob("*.png"))) == 8
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    with pytest.raises(UserError, match="another drawing: seed was 0, now 1"):
        benchmarks.make(a_make("geneval", drawn_from, out, geneval_prompts, num=3, seed=1))
    benchmarks.make(task)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    prompts = geneval.read_prompts(geneval_prompts)
    for prompt in prompts[:3]:
        folder = out / prompt.name
        assert json.loads((folder / "metadata.jsonl").read_text()) == prompt.metadata
        files = sorted(path.name for path in (folder / "samples").iterdir())
        assert files == ["0000.png", "0001.png", "0002.png", "0003.png"]
    found = geneval.find_images(epath.Path(out))
    assert len({Image.open(path).tobytes() for path, _ in found}) == len(found) == 12


def test_dpg_images_are_grids_of_four(drawn_from, tmp_path):
    folder = tmp_path / "prompts"
    folder.mkdir()
    for name, text in (("b", "two rings"), ("a", "a cross")):
        (folder / f"{name}.txt").write_text(text)
    benchmarks.make(a_make("dpg", drawn_from, tmp_path / "images", epath.Path(folder)))
    grid = np.asarray(Image.open(tmp_path / "images" / "a.png"))
    assert grid.shape == (32, 32, 3)
    # The same samples as GenEval's layout would hold, in its order.
    loaded = load(drawn_from)
    conditions = encode_prompts(loaded, ["a cross"]).conditions
    generator = make_generator(loaded, {"steps": 1}, 4)
    rows = np.zeros(4, int)
    images = next(generator.batches(loaded.params, conditions, 0, 0, rows))
    from tp_jax.pictures.grids import to_uint8

    np.testing.assert_allclose(dpg.tiles(grid).astype(int), to_uint8(images), atol=1)
    with pytest.raises(UserError, match="--samples_per_prompt=3: dpg wants 4"):
        benchmarks.make(a_make("dpg", drawn_from, tmp_path / "x", epath.Path(folder), samples=3))


def test_shapes_are_scored_from_their_pictures(drawn_from, tmp_path, monkeypatch, capsys):
    few = shapes.prompts(per_skill=4)
    monkeypatch.setattr(shapes, "prompts", lambda: few)
    images, out = epath.Path(tmp_path / "out/images"), epath.Path(tmp_path / "out")
    benchmarks.make(a_make("shapes", drawn_from, images, samples=1))
    for path, _ in geneval.find_images(images):
        Image.new("RGB", (64, 64), "grey").save(path)
    content = verdicts.score_shapes(images, out)
    assert content["overall"]["images"] == 24 and content["overall"]["overall"] == 0
    # Right pictures in their place: all of seen combinations, and one of the unseen.
    draw_right(images, [prompt for prompt in few if prompt.metadata["seen"]] + few[-1:])
    (out / "results.jsonl").unlink()
    content = verdicts.score_shapes(images, out)
    assert content["seen"]["overall"] == 1 and set(content["seen"]["tags"]) == set(geneval.PROMPTS)
    assert content["unseen"]["tags"] == dict.fromkeys(
        [tag for tag in geneval.PROMPTS if tag != "single_object"], 0
    ) | {"color_attr": 0.5}
    assert content["overall"]["overall"] == pytest.approx((1 + 0.5 * 4 + 0.75) / 6)
    assert json.loads((out / "scores.json").read_text())["seen"]["images"] == 14
    assert (out / "gallery.png").exists()
    assert "color_attr" in capsys.readouterr().out
    geneval.image_path(images, few[-1], 0).unlink()
    with pytest.raises(UserError, match="has no images|has 23 of 24 images"):
        verdicts.score_shapes(images, out)


def test_scores_of_seeds_are_collected(tmp_path):
    def write(variant, seed, value, **changes):
        part = {"tags": dict.fromkeys(geneval.PROMPTS, value), "overall": value}
        content = dict.fromkeys(verdicts.PARTS, part) | changes
        path = tmp_path / variant / seed / "scores.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))

    for seed, value in (("0", 0.1), ("1", 0.3)):
        write("base", seed, value)
        write("think", seed, value + 0.2)
    root, out = epath.Path(tmp_path), epath.Path(tmp_path / "shapes.json")
    content = collecting.collect(root, out, "shapes")
    scores = content["variants"]["think"]
    assert scores["mean"]["seen mean"] == pytest.approx(0.4)
    assert scores["std"]["unseen counting"] == pytest.approx(0.1 * 2**0.5)
    assert "| overall mean | 20.0 ± 14.1 | 40.0 ± 14.1 |" in out.with_suffix(".md").read_text()
    (tmp_path / "think/1/scores.json").write_text("{")
    with pytest.raises(UserError, match="think/1/scores.json is damaged"):
        collecting.collect(root, out, "shapes")
    write("think", "1", 0.5, unseen=None)
    with pytest.raises(UserError, match="think/1/scores.json isn't a whole score of shapes"):
        collecting.collect(root, out, "shapes")
    (tmp_path / "think/1/scores.json").unlink()
    with pytest.raises(UserError, match="variants have other seeds"):
        collecting.collect(root, out, "shapes")


def draw_right(folder, prompts):
    from tp_jax.worlds.shapes.scenes import SKILLS, all_requests, make_scene

    rng = np.random.default_rng(0)
    for prompt in prompts:
        request = next(
            one for skill in SKILLS for one in all_requests(skill)
            if one.caption == prompt.text and skill == prompt.metadata["tag"]
        )  # fmt: skip
        picture = render(make_scene(request, rng, only_seen=False), 64)
        path = geneval.image_path(folder, prompt, 0)
        Image.fromarray((picture * 255).astype(np.uint8)).save(path)


def test_benchmarks_refuse_what_does_not_fit(drawn_from, tmp_path, trained):
    for fields, message in (
        (dict(suite="geneval"), "--prompts is missing: name your copy of the prompts of geneval"),
        (dict(suite="shapes", num=0), "--num=0: shapes has 240 prompts here"),
        (dict(suite="shapes", samples=0), "--samples_per_prompt=0: shapes wants 1 or more"),
        (dict(suite="shapes", height=8), "the scorer of shapes wants square images"),
        (dict(suite="shapes", workdir=trained), "a dit model draws classes, not prompts"),
    ):
        fields = {"workdir": drawn_from, "out": tmp_path / "out"} | fields
        with pytest.raises(UserError, match=message):
            benchmarks.make(a_make(**fields))
    assert not (tmp_path / "out").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.txt").write_text("")
    with pytest.raises(UserError, match="holds other files: name a new or empty folder"):
        benchmarks.make(a_make("shapes", drawn_from, tmp_path / "mine"))


# Pooled latents


def test_pooling_takes_means_and_enlarges():
    pooling = Pooling(4)
    ramp = np.broadcast_to(np.arange(8, dtype=np.float32)[None, :, None, None], (1, 8, 12, 3))
    latents = np.asarray(pooling.encode(ramp, None, 0, 0))
    np.testing.assert_allclose(latents[0, :, :, 0], [[1.5] * 3, [5.5] * 3])
    flat = np.full((2, 3, 5, 3), 0.25, np.float32)
    np.testing.assert_allclose(pooling.decode(flat), np.full((2, 12, 20, 3), 0.25), atol=1e-6)
    config = tiny_shapes()
    config.autoencoder.path = "somewhere"
    with pytest.raises(UserError, match="path=somewhere and .pool=2: give one of the two"):
        load_codec(config.autoencoder, None)


def test_the_checker_reads_pooled_pictures():
    pooling, wrong = Pooling(4), 0
    for index in range(40):
        scene = training_scene(index, seed=3)
        picture = pooling.decode(pooling.encode(render(scene, 64)[None], None, 0, 0))
        found = find_objects(np.clip(np.asarray(picture)[0], 0, 1))
        wrong += not same_contents(found, scene.objects, 2 / 64)
    assert wrong <= 1


# Predicted data


def test_predicted_data_is_the_same_flow():
    flow, data_flow = RectifiedFlow(), RectifiedFlow(prediction="data")
    rng = np.random.default_rng(0)
    x, noise = (jnp.asarray(rng.standard_normal((4, 2, 2, 1)), jnp.float32) for _ in range(2))
    times = jnp.array([0.02, 0.3, 0.7, 0.95])
    off = 0.1 * jnp.asarray(rng.standard_normal(x.shape), jnp.float32)
    # A velocity that is off by e is data that are off by -σ·e.
    by_data = data_flow.losses(
        lambda x_t, t: x - t[:, None, None, None] / 1000 * off, x, noise, times
    )
    by_velocity = flow.losses(lambda x_t, t: noise - x + off, x, noise, times)
    np.testing.assert_allclose(by_data["loss"][1:], by_velocity["loss"][1:], rtol=1e-4)
    # Below σ = 0.05 the error of the data isn't magnified further.
    true = 0.02 * off[0] / 0.05
    np.testing.assert_allclose(by_data["loss"][0], jnp.mean(true**2), rtol=1e-4)


@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_samplers_reach_predicted_data(sampler):
    target = jnp.asarray(np.random.default_rng(1).standard_normal((1, 2, 2, 1)), jnp.float32)
    out = draw(
        RectifiedFlow(prediction="data"),
        SamplerConfig(sampler=sampler, steps=20),
        lambda x, t, key: jnp.broadcast_to(target, x.shape),
        jax.random.key(0),
        jnp.arange(3),
        (2, 2, 1),
    )
    np.testing.assert_allclose(out, jnp.broadcast_to(target, out.shape), atol=1e-4)


def test_the_kind_of_prediction_is_checked():
    with pytest.raises(UserError, match="prediction='noise': choose velocity or data"):
        RectifiedFlow(prediction="noise")


# The config


@pytest.mark.parametrize("base", ["", "large,"])
def test_plain_lora_has_as_many_parameters_as_thinking(base):
    def counted(argument):
        config = CONFIGS["get_config"](argument)
        built = config_lib.build(config)
        shapes = abstract_params(build_model(built.model))["thinking"]
        return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes)), config

    thinking, config = counted(f"{base}think")
    lora, plain = counted(f"{base}lora")
    assert abs(lora / thinking - 1) < 0.01
    assert plain.train.steps == config.train.steps
    assert plain.model.thinking.layers == config.model.thinking.layers


def test_an_unknown_argument_is_named():
    with pytest.raises(UserError, match="unknown argument 'thnk': choose of think, lora, large"):
        CONFIGS["get_config"]("thnk")


def test_skills_are_geneval_tags():
    tags = collections.Counter(p.metadata["tag"] for p in shapes.prompts())
    assert set(tags) == set(geneval.PROMPTS) and len(set(tags.values())) == 1


def test_the_notebook_draws_prompts(drawn_from, tmp_path):
    import papermill

    notebook = papermill.execute_notebook(
        ROOT / "notebooks" / "sample.ipynb",
        tmp_path / "run.ipynb",
        dict(workdir=str(drawn_from), prompts=["a cross", "two rings"], num=4, latent_steps=[]),
        cwd=ROOT / "notebooks",
        progress_bar=False,
    )
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    assert sum("image/png" in out.get("data", {}) for out in outputs) == 1

"""Text-to-image models: training on captions, sampling from prompts, the Shapes configs."""

import collections
import json
import pathlib
import runpy

import jax
import numpy as np
import pytest
from etils import epath
from small_configs import tiny_shapes

from tp_jax import config as config_lib
from tp_jax import data
from tp_jax.evals import SUITES
from tp_jax.evals.geneval import prompts as geneval
from tp_jax.evals.shapes import scores as shapes
from tp_jax.latents.codec import Pooling
from tp_jax.messages.errors import UserError
from tp_jax.models import build_model
from tp_jax.models.parameters import abstract_params
from tp_jax.sampling.draw import Drawing, draw_samples
from tp_jax.sampling.loaded import load
from tp_jax.sampling.plan import slug
from tp_jax.sampling.prompts import check_is_text, encode_prompts, read_prompts
from tp_jax.sampling.request import make_generator
from tp_jax.worlds.shapes.scenes import EASY, training_scene

ROOT = pathlib.Path(__file__).parent.parent
CONFIGS = runpy.run_path(str(ROOT / "configs" / "shapes.py"))


def test_training_samples_use_captions_of_the_data(trained_shapes):
    assert (trained_shapes / "samples" / "00000008.png").exists()
    config = tiny_shapes()
    source = data.open_source(config)
    encoder = data.open_text(source, config)
    conditions = data.example_conditions(source, encoder, 3)
    captions = [training_scene(index, difficulty=EASY).caption for index in range(3)]
    np.testing.assert_array_equal(conditions["text"], encoder.encode(captions)["text"])


def test_batches_hold_distinct_scenes_and_their_captions():
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


def test_sampling_from_prompts_writes_images_and_captions(trained_shapes, tmp_path):
    prompts = ("a red circle", "two rings")
    drawing = Drawing(
        trained_shapes, epath.Path(tmp_path / "out"), num=3, prompts=prompts, batch_size=4
    )
    draw_samples(drawing)
    names = sorted(path.name for path in (tmp_path / "out").glob("0*.png"))
    assert names == ["00000_a-red-circle.png", "00001_two-rings.png", "00002_a-red-circle.png"]
    lines = [
        json.loads(line) for line in (tmp_path / "out/captions.jsonl").read_text().splitlines()
    ]
    assert [line["caption"] for line in lines] == ["a red circle", "two rings", "a red circle"]
    assert [line["file"] for line in lines] == names


def test_an_npz_holds_one_image_of_each_prompt_and_the_prompts(trained_shapes, tmp_path):
    prompts = ("a red circle", "two rings", "a cross")
    draw_samples(Drawing(trained_shapes, epath.Path(tmp_path / "a.npz"), prompts=prompts))
    with np.load(tmp_path / "a.npz") as file:
        assert file["arr_0"].shape == (3, 16, 16, 3)
        assert tuple(file["arr_1"]) == prompts


def test_the_sample_of_a_prompt_does_not_depend_on_other_prompts(trained_shapes):
    loaded = load(trained_shapes)
    generator = make_generator(loaded, {"guidance_scale": 3.0}, 4)

    def drawn(texts, negative=""):
        conditions = encode_prompts(loaded, texts, negative).conditions
        return np.concatenate(list(generator.batches(loaded.params, conditions, 0)))

    alone = drawn(["a cross"])
    np.testing.assert_allclose(drawn(["a cross", "two rings"])[:1], alone, atol=1e-5)
    # The model is barely trained, so samples of different texts differ only a little.
    assert np.abs(drawn(["a red ring"]) - alone).max() > 1e-6
    assert np.abs(drawn(["a cross"], "two rings") - alone).max() > 1e-6


def test_height_and_width_set_the_size_of_samples(trained_shapes, tmp_path):
    out = epath.Path(tmp_path / "a.npz")
    draw_samples(Drawing(trained_shapes, out, prompts=("a cross",), height=8, width=12))
    assert np.load(out)["arr_0"].shape == (1, 8, 12, 3)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({}, "--prompts is missing: a mmdit model is conditioned on text; give a prompt"),
        (
            {"prompts": ("a cross",), "labels": (1,)},
            "--labels and --uniform only apply to models of classes",
        ),
        ({"prompts": ("a dog",)}, "doesn't know the word 'dog'; it knows a, an"),
        ({"prompts": ("a " * 9,)}, "has 9 words, but the encoder accepts at most 8: shorten it"),
        ({"prompts": ("a cross",), "height": 30}, "--height=30: must be a multiple of 4, up to 16"),
        ({"prompts": ("a cross",), "width": 20}, "--width=20: must be a multiple of 4, up to 16"),
        ({"prompts": ("a cross",), "negative_prompt": "a dog"}, "doesn't know the word 'dog'"),
    ],
)
def test_invalid_prompts_and_sizes_are_refused(trained_shapes, tmp_path, fields, message):
    with pytest.raises(UserError, match=message):
        draw_samples(Drawing(trained_shapes, epath.Path(tmp_path / "out"), **fields))
    assert not (tmp_path / "out").exists()


def test_flags_for_text_are_refused_for_a_class_conditional_model(trained, tmp_path):
    for fields, message in (
        ({"prompts": ("a cross",)}, "a dit model is conditioned on classes, not on prompts: use"),
        ({"negative_prompt": "a"}, "--negative_prompt only applies to models of text"),
        ({"height": 8}, "a dit model only generates the size that it was trained on"),
    ):
        with pytest.raises(UserError, match=message):
            draw_samples(Drawing(trained, epath.Path(tmp_path / "out"), **fields))


def test_prompts_are_read_from_the_flag_or_a_file(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("a cross\n\n  two rings \n")
    assert read_prompts(str(file)) == ("a cross", "two rings")
    assert read_prompts("a cross") == ("a cross",)
    assert read_prompts("a " * 500) == ("a " * 500,)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="isn't UTF-8 text"):
        read_prompts(str(file))
    with pytest.raises(UserError, match="is a folder: give a file"):
        read_prompts(str(tmp_path))
    file.write_text(" \n\n")
    with pytest.raises(UserError, match="prompts.txt is empty: write one prompt per line"):
        read_prompts(str(file))
    with pytest.raises(UserError, match="--prompts is empty"):
        read_prompts(" ")


@pytest.mark.parametrize(
    "given",
    [
        "promts.txt", "my prompts.txt", "my prompts.TXT", "prompts.jsonl", "prompts.yaml",
        "animals.prompts", "./mine", "../my prompts", "~/mine", "~ann/mine", "lists/animals",
        "lists/animals.list2", "prompts/", "C:\\texts\\mine.doc", "s3://bucket/mine",
        "my lists/animals", "lists/two animals", "'promts.txt'", '"my prompts.txt"',
        "/nowhere/mine", "prompts.txt.gz", "prompts.parquet", "prompts.zip", "prompts.html",
        "my prompts.pkl",
    ],
)  # fmt: skip
def test_what_looks_like_a_missing_file_is_not_drawn(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lists").mkdir()
    (tmp_path / "my lists").mkdir()
    with pytest.raises(UserError) as refused:
        read_prompts(given)
    assert str(refused.value) == (
        f"--prompts={given}: there is no such file; if it is a prompt, write it into a file with "
        f"one prompt per line and give that"
    )
    with pytest.raises(UserError, match=r"--negative_prompt=.* looks like a file: give the text"):
        check_is_text("negative_prompt", given)


@pytest.mark.parametrize(
    "given",
    [
        "a 1/2 eaten apple.", "24/7", "and/or", "photo taken at f/2.8", "f/2.8", "...", "a cat.",
        "a sign that says readme.txt", "Mr. Smith", "black/white", "/imagine a red bench",
        "AC/DC on stage", "w/o text", "~50 birds", "a:b", "https is a protocol", "犬" * 200,
        "a cat\0", "an open book, page 3/4", "U.S.A", "a.m.", "node.js",
        "a cat://x", "'a cat'", "IMG_0001.CR2", "/ or not", "a text/html page",
    ],
)  # fmt: skip
def test_prompts_with_dots_and_slashes_are_drawn(given):
    assert read_prompts(given) == (given,)
    check_is_text("negative_prompt", given)


def test_a_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine").write_text("a cross")
    assert read_prompts("~/mine") == ("a cross",)
    with pytest.raises(UserError, match="looks like a file"):
        check_is_text("negative_prompt", "~/mine")


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("A red bench, at 5:30!", "a-red-bench-at-5-30"),
        ("word " * 20, "word-" * 12),
        ("红色的长椅", "红色的长椅"),
        ("Красная скамейка", "красная-скамейка"),
        ("مقعد أحمر", "مقعد-أحمر"),
        ("लाल बेंच", "लाल-बेंच"),
        ("cafe\u0301", "café"),
        ("می\u200cخواهم", "میخواهم"),
        ("Ελλάδα/Κρήτη", "ελλάδα-κρήτη"),
        ("a ❤️ b", "a-b"),
        ("❤️ 👩‍👩‍👧", "prompt"),
        ("1️⃣", "1"),
        ("日" * 300, "日" * 60),
        ("𠀀" * 300, "𠀀" * 45),
        ('<>:"/\\|?*', "prompt"),
        ("CON", "con"),
    ],
)
def test_file_names_keep_letters_of_any_script(prompt, name):
    assert slug(prompt) == name
    assert len(f"{10**9}_{name}.png.tmp".encode()) <= 255


def test_data_that_does_not_fit_the_model_condition_is_refused():
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
    with pytest.raises(UserError, match="captions of shapes aren't encoded: encode them with"):
        data.open_text(data.open_source(config), config)
    config = tiny_shapes()
    config.model.text_width += 1
    with pytest.raises(UserError, match="config.model.text_width=.*encoder is "):
        data.open_text(data.open_source(config), config)


# The variants of configs/shapes.py.


@pytest.mark.parametrize("base", ["", "hard,", "large,"])
def test_plain_lora_has_as_many_parameters_as_thinking(base):
    def count_and_config(argument):
        config = CONFIGS["get_config"](argument)
        built = config_lib.build(config)
        shapes = abstract_params(build_model(built.model))["thinking"]
        return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes)), config

    thinking, config = count_and_config(f"{base}think")
    lora, plain = count_and_config(f"{base}lora")
    assert abs(lora / thinking - 1) < 0.01
    assert plain.train.steps == config.train.steps
    assert plain.model.thinking.layers == config.model.thinking.layers


def test_an_unknown_config_variant_is_refused():
    with pytest.raises(
        UserError, match="unknown variant 'thnk': choose from think, lora, hard, large"
    ):
        CONFIGS["get_config"]("thnk")


@pytest.mark.parametrize(("difficulty", "absent"), [("easy", {"orange"}), ("hard", set())])
def test_data_and_prompts_have_the_difficulty_of_the_config(difficulty, absent):
    config = tiny_shapes()
    config.shapes.difficulty = difficulty
    records = data.open_source(config).records
    captions = [records[index].caption for index in range(200)]
    prompts = [prompt.text for prompt in SUITES["shapes"].load().read_prompts(None, config)]
    for texts in (captions, prompts):
        words = set(" ".join(texts).split())
        assert {"circle", "orange"} - words == absent and {"ring", "four", "red", "below"} <= words


def test_shapes_skills_are_the_tags_of_geneval():
    tags = collections.Counter(p.metadata["tag"] for p in shapes.make_prompts())
    assert set(tags) == set(geneval.PROMPTS_PER_TAG) and len(set(tags.values())) == 1

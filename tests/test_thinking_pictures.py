"""Tables and grids of samples: names of classes, sharp pictures, thinking and routing shown."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from conftest import run_entry
from etils import epath
from PIL import ImageFont

import tp_jax
from tp_jax.messages.errors import UserError
from tp_jax.pictures.experts import expert_colours, paint_experts
from tp_jax.pictures.galleries import make_class_grid, wrap_text
from tp_jax.pictures.reading import open_images, read_rgb
from tp_jax.pictures.tables import Row, make_table
from tp_jax.sampling.thinking_pictures import chosen_latent_steps
from tp_jax.workdir.changes import read_class_names

# Of a table with two columns and cells of 96 pixels: the left edges of its pictures.
LEFTS = (156, 258)


def random_images(count, side=8, channels=1):
    # Colours that neither text nor paper has.
    draw = np.random.default_rng(0).integers(80, 200, (count, side, side, channels))
    return draw.astype(np.uint8)


def blocks(picture, size):
    """Return a picture [size, size, 3] of equal squares, or fail if the squares aren't plain."""
    zoom = len(picture) // size
    squares = picture.reshape(size, zoom, size, zoom, 3)
    np.testing.assert_array_equal(squares, np.broadcast_to(squares[:, :1, :, :1], squares.shape))
    return squares[:, 0, :, 0]


def test_pictures_of_a_table_are_enlarged_without_interpolation():
    images = random_images(2)
    maps = random_images(2, side=4, channels=3)
    table = make_table(["a", "b"], [Row("digits", images), Row("experts", maps)])
    top = 17 + 2 * 6
    for left, image, small in zip(LEFTS, images, maps, strict=True):
        found = table[top : top + 96, left : left + 96]
        np.testing.assert_array_equal(blocks(found, 8), image.repeat(3, axis=-1))
        found = table[top + 102 : top + 198, left : left + 96]
        np.testing.assert_array_equal(blocks(found, 4), small)


def test_large_pictures_of_a_table_are_reduced():
    colour = np.array([90, 140, 30], np.uint8)
    images = np.broadcast_to(colour, (1, 300, 600, 3))
    table = make_table(["a"], [Row("one", images)], cell=100)
    assert (table == colour).all(-1).sum() == 100 * 50


def test_a_table_has_room_for_long_texts():
    row = Row("a title of very many words " * 8, random_images(1))
    short, long = make_table(["a"], [row]), make_table(["a caption " * 20], [row])
    assert long.shape[0] > short.shape[0] > 150
    font = ImageFont.load_default(12)
    lines = wrap_text("wordlongerthanitscolumn or not", font, 60)
    assert "".join(lines).replace(" ", "") == "wordlongerthanitscolumnornot"
    assert all(font.getlength(line) <= 60 for line in lines) and len(lines) > 2


@pytest.mark.parametrize("experts", [1, 2, 8, 9, 64])
def test_experts_have_colours_of_their_own(experts):
    colours = expert_colours(experts)
    assert colours.shape == (experts, 3) and len(np.unique(colours, axis=0)) == experts
    chosen = np.arange(experts)[None]
    np.testing.assert_array_equal(paint_experts(chosen, (1, experts), experts)[0, 0], colours)
    assert make_table(["a"], [Row("b", random_images(1))], experts=experts).shape[0] > 140


def test_latent_steps_to_compare_go_from_one_to_the_last():
    assert chosen_latent_steps(2) == [1, 2]
    for last in range(1, 40):
        steps = chosen_latent_steps(last)
        assert steps == sorted(set(steps)) and steps[0] == 1 and steps[-1] == last
        assert len(steps) == min(last, 5)


def test_a_grid_shows_names_of_classes():
    images = random_images(4)
    named = make_class_grid(images, [0, 1, 2, 3], ["cat", "dog", "cow"])
    np.testing.assert_array_equal(
        named, make_class_grid(images, [0, 1, 2, 3], ["cat", "dog", "cow"])
    )
    numbered = make_class_grid(images, [0, 1, 2, 3])
    changed = (named != numbered).any((0, 2))
    # The last class has no name, so its caption is its number in both.
    width = named.shape[1] // 4
    assert [changed[i * width : (i + 1) * width].any() for i in range(4)] == [True] * 3 + [False]


def test_class_names_are_those_of_the_run(trained, tmp_path):
    assert read_class_names(trained) == tuple("0123456789")
    assert tp_jax.Model.load(trained).class_names == tuple("0123456789")
    assert read_class_names(epath.Path(tmp_path)) == ()
    (tmp_path / "run.json").write_text('{"images": 3}')
    with pytest.raises(UserError, match=r"run.json.*has no 'classes'.*; delete it"):
        read_class_names(epath.Path(tmp_path))


def test_grids_of_training_and_sampling_have_the_names_of_the_run(trained, tmp_path):
    out, labels, names = tmp_path / "out", [0, 1, 2, 3], tuple("0123456789")
    options = [f"--workdir={trained}", f"--out={out}", "--num=4"]
    assert run_entry("sample", *options, "--labels=0,1,2,3")[0] == 0
    model = tp_jax.Model.load(trained)
    for path, seed in ((out / "grid.png", 0), (trained / "samples" / "00000006.png", None)):
        seed = model.loaded.config.seed if seed is None else seed
        images = model.sample(4, labels=labels, seed=seed)
        found = read_rgb(epath.Path(path)).astype(int)
        # A caption with another text differs by more than the rounding of pixels.
        assert np.abs(found - make_class_grid(images, labels, names)).max() <= 1
        assert np.abs(found - make_class_grid(images, labels)).max() > 100


@pytest.fixture(scope="module")
def shown(trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("shown") / "out"
    options = ["--num=3", "--latent_steps=1", "--show_thinking"]
    code, _, error = run_entry("sample", f"--workdir={trained}", f"--out={out}", *options)
    assert code == 0, error
    return out


@pytest.fixture(scope="module")
def strong(trained):
    """A model whose thinking changes its samples, and whose gate changes its mind."""
    loaded = tp_jax.Model.load(trained).loaded
    draw = np.random.default_rng(0)
    params = {
        part: jax.tree.map(
            lambda leaf, size=size: leaf + size * draw.normal(size=leaf.shape).astype(leaf.dtype),
            loaded.params[part],
        )
        for part, size in (("base", 0.3), ("thinking", 2.0))
    }
    return tp_jax.Model(dataclasses.replace(loaded, params=params))


@pytest.fixture(scope="module")
def pictures(strong):
    return strong.picture_thinking(12, labels=[3, 5], seed=7, latent_steps=3)


def test_the_comparison_has_the_base_and_each_number_of_latent_steps(strong, pictures):
    options = dict(labels=[3, 5], seed=7)
    rows = [strong.sample(10, thinking=False, **options)]
    rows += [strong.sample(10, latent_steps=t, **options) for t in (1, 2, 3)]
    table, left, top, side = pictures.comparison.astype(int), 156, 17 + 2 * 6, 96
    for number, images in enumerate(rows):
        for i, image in enumerate(images):
            y, x = top + number * (side + 6), left + i * (side + 6)
            found = blocks(table[y : y + side, x : x + side], 8)
            # Batches of another size round differently.
            assert np.abs(found - image.astype(int)).max() <= 1
    summary = pictures.summary
    away = [np.abs(images.astype(float) - rows[-1]).mean() for images in rows]
    assert min(away[:-1]) > 0.5 and len(np.unique(np.round(away, 1))) == 4
    assert summary["grey_levels_from_without_thinking"] == pytest.approx(away[0], abs=0.1)
    for t in (1, 2, 3):
        assert summary["grey_levels_from_latent_steps"][str(t)] == pytest.approx(away[t], abs=0.1)
    assert (summary["latent_steps"], summary["trained_latent_steps"]) == (3, 2)


def test_the_routing_has_the_experts_of_the_trace(strong, pictures):
    routing = strong.trace(10, labels=[3, 5], seed=7, latent_steps=3)
    left, top, side, row = 156, 17 + 2 * 6, 96, 0
    for block in (1, 2):
        for step in range(3):
            for t in range(3):
                row += 1
                for i, chosen in enumerate(routing.experts[block][step, t]):
                    y, x = top + row * (side + 6), left + i * (side + 6)
                    found = blocks(pictures.routing[y : y + side, x : x + side], 2)
                    expected = expert_colours(2)[chosen.reshape(2, 2)]
                    np.testing.assert_array_equal(found, expected)
    kept = pictures.summary["kept_experts"]
    for block in (1, 2):
        chosen = routing.experts[block]
        pairs = [(chosen[:, t], chosen[:, t + 1]) for t in range(2)]
        share = np.mean([np.mean(first == second) for first, second in pairs])
        assert kept[str(block)] == pytest.approx(share)
    # Otherwise the order of the latent steps wouldn't show.
    assert any((chosen[:, 0] != chosen[:, 1]).any() for chosen in routing.experts.values())


def test_the_pictures_may_be_added_to_samples_that_exist(trained, tmp_path):
    options = [f"--workdir={trained}", f"--out={tmp_path / 'out'}", "--num=2", "--latent_steps=1"]
    assert run_entry("sample", *options)[0] == 0
    code, _, error = run_entry("sample", *options, "--show_thinking")
    assert code == 0, error
    assert (tmp_path / "out" / "comparison.png").exists()
    assert json.loads((tmp_path / "out" / "thinking.json").read_text())["latent_steps"] == 1


def test_the_pictures_of_thinking_are_no_samples(shown, capsys):
    assert open_images(epath.Path(shown)).count == 3
    assert "left out" not in capsys.readouterr().err


def test_another_request_replaces_the_pictures_of_thinking(shown, trained, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(shown, out)
    options = [f"--workdir={trained}", f"--out={out}", "--num=2", "--overwrite"]
    assert run_entry("sample", *options)[0] == 0
    left = {path.name for path in out.iterdir()}
    assert left == {"00000_class0.png", "00001_class1.png", "drawing.json", "grid.png"}


def test_what_cannot_be_shown_is_refused(refused, trained, tmp_path):
    options = [f"--workdir={trained}", "--show_thinking", "--num=2"]
    out = tmp_path / "place"
    refused("sample", *options, f"--out={out / 'a.npz'}", match="--show_thinking needs a folder")
    match = "--show_thinking compares with the base, which --nothinking samples alone"
    refused("sample", *options, "--nothinking", f"--out={out / 'a'}", match=match)


def test_a_model_without_thinking_has_no_pictures_of_it(trained_shapes, tmp_path):
    model = tp_jax.Model.load(trained_shapes)
    with pytest.raises(UserError, match="thinking.layers is empty: the model has no routing"):
        model.picture_thinking(2, prompts=["a cross"])
    options = ["--show_thinking", f"--out={tmp_path / 'out'}", "--prompts=a cross"]
    code, _, error = run_entry("sample", f"--workdir={trained_shapes}", *options)
    assert code == 2 and "--show_thinking: the model has no thinking layers" in error
    assert not (tmp_path / "out").exists()

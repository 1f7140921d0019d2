"""Records held out from training, and the examples of validation that sources give."""

import pathlib

import grain
import numpy as np
import pytest
from conftest import tiny_config
from image_files import saved
from PIL import Image
from scipy import stats
from small_configs import tiny_frozenlake, tiny_shapes

from tp_jax import data
from tp_jax.data.held_out import record_hashes
from tp_jax.data.source import SEEN, UNSEEN, Source
from tp_jax.data.sources import SOURCES, SourceKind, frozenlake
from tp_jax.messages.errors import UserError
from tp_jax.worlds.frozenlake.maps import is_held_out
from tp_jax.worlds.shapes import scenes
from tp_jax.worlds.shapes.scenes import DIFFICULTIES, training_scene, unseen_scene

COUNT = 101


class Numbers(Source):
    """Records are their own indices; those that 7 divides can't be read."""

    def decoder(self, size, flip):
        def decode(record, rng):
            if record % 7 == 0:
                raise ValueError("damaged")
            return {"x": np.full((8, 8, 1), record), "condition": {"label": np.int32(0)}}

        return decode


@pytest.fixture
def numbers(monkeypatch):
    """A config whose data are the numbers from 0 to 100."""
    names = tuple("0123456789")
    kind = SourceKind(lambda dir, split, section: Numbers(range(COUNT), 8, 1, names))
    monkeypatch.setitem(SOURCES, "numbers", kind)
    config = tiny_config()
    config.data.update(source="numbers", skip_corrupt=True)
    return config


def read_numbers(config, batches):
    """The records of the next batches of training, one after another."""
    iterator = data.make_iterator(data.open_source(config), config)
    return np.concatenate([next(iterator)["x"][:, 0, 0, 0] for _ in range(batches)]).astype(int)


@pytest.mark.parametrize("fraction", [0.1, 0.6])
def test_training_never_reads_a_held_out_record(numbers, fraction):
    numbers.validation.fraction = fraction
    source = data.open_source(numbers)
    held_out = set(data.held_out_part(source, numbers).rows.tolist())
    kept = set(data.training_part(source, numbers).rows.tolist())
    assert held_out | kept == set(range(COUNT)) and not held_out & kept
    assert abs(len(held_out) - fraction * COUNT) < 4 * np.sqrt(COUNT) / 2
    # Many epochs, in which unreadable records are replaced by others.
    read = set(read_numbers(numbers, 100).tolist())
    assert not read & held_out
    assert read == {number for number in kept if number % 7}
    examples = data.open_validation(source, numbers)[SEEN]
    found = examples.batch(np.arange(examples.count))["x"][:, 0, 0, 0]
    assert set(found.tolist()) <= held_out


def test_without_validation_the_order_of_training_is_that_of_all_records(numbers):
    numbers.data.skip_corrupt = False
    numbers.seed = 3
    order = list(grain.MapDataset.range(COUNT).seed(3).shuffle())
    readable = [number for number in order if number % 7]
    assert len(readable) < COUNT
    numbers.data.skip_corrupt = True
    read = read_numbers(numbers, COUNT // 8)
    wanted = [number if number % 7 else (number + 1) % COUNT for number in order]
    # 100 is followed by 0, which can't be read either.
    wanted = [number if number % 7 else 1 for number in wanted]
    np.testing.assert_array_equal(read, wanted[: len(read)])


def test_held_out_records_depend_on_the_seed_of_validation_alone(numbers):
    numbers.validation.fraction = 0.2

    def rows():
        return data.held_out_part(data.open_source(numbers), numbers).rows.tolist()

    first = rows()
    assert first != sorted(first)
    numbers.seed = 5
    assert rows() == first
    numbers.validation.seed = 1
    assert set(rows()) != set(first)


def test_hashes_are_uniform_and_independent_of_the_index():
    hashes = record_hashes(20_000, seed=0)
    assert stats.kstest(hashes, "uniform").pvalue > 0.01
    assert abs(stats.spearmanr(np.arange(20_000), hashes).statistic) < 0.02
    assert abs(stats.spearmanr(hashes[1:], hashes[:-1]).statistic) < 0.02
    assert abs(stats.spearmanr(hashes, record_hashes(20_000, seed=1)).statistic) < 0.02
    np.testing.assert_array_equal(record_hashes(50, seed=0), hashes[:50])


def folder(root: pathlib.Path, name: str, classes=("cats", "dogs"), count=6):
    """Write grey pictures, `count` in each class; return the config of training on them."""
    for number, label in enumerate(classes):
        (root / name / label).mkdir(parents=True)
        for i in range(count):
            picture = np.full((8, 8, 3), 20 * i + number, np.uint8)
            (root / name / label / f"{i}.png").write_bytes(saved(Image.fromarray(picture), "png"))


@pytest.fixture
def pictures(tmp_path):
    folder(tmp_path, "train")
    folder(tmp_path, "val")
    config = tiny_config(batch_size=4)
    config.data.update(source="folder", dir=str(tmp_path), split="train")
    config.model.update(channels=3, num_classes=2)
    return config


def test_another_split_is_read_in_a_random_order(pictures):
    pictures.validation.split = "val"
    source = data.open_source(pictures)
    examples = data.open_validation(source, pictures)[SEEN]
    assert examples.count == 12 and len(data.training_part(source, pictures)) == 12
    labels = examples.batch(np.arange(12))["condition"]["label"]
    assert sorted(labels) == [0] * 6 + [1] * 6 and set(labels[:6]) == {0, 1}
    assert "/val/" in examples.read.record_name(0)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"fraction": 0.1, "split": "val"}, "fraction=0.1 and .split='val'.*not both"),
        ({"fraction": 0.001}, "fraction=0.001 holds out 0 of the 12 records"),
        ({"split": "train"}, "split='train' names the training data"),
        ({"split": "nothing"}, "neither images nor class folders"),
        ({"split": "others"}, "its 2 classes aren't the 2 of training"),
        ({"fraction": 0.9}, "batch_size=4 is larger than folder.* that aren't held out"),
    ],
)
def test_validation_that_does_not_fit_is_refused(fields, match, pictures, tmp_path):
    folder(tmp_path, "others", ("birds", "cats"))
    pictures.validation.update(fields)
    with pytest.raises(UserError, match=match):
        data.open_validation(data.open_source(pictures), pictures)


def test_a_folder_that_contains_the_training_data_is_refused(pictures, tmp_path):
    pictures.data.update(dir=str(tmp_path / "train"), split="train")
    pictures.validation.split = "val"  # There is no such folder in it.
    with pytest.raises(UserError, match="training reads .*cats/.* too"):
        data.open_validation(data.open_source(pictures), pictures)


@pytest.mark.parametrize(
    ("source", "fields", "match"),
    [
        ("digits", {"split": "test"}, "split='test': digits has no splits: set .*fraction"),
        ("digits", {"dir": "/x"}, "dir='/x': digits has no folders"),
        ("synthetic", {"fraction": 0.5}, "fraction=0.5: synthetic generates its examples"),
    ],
)
def test_sources_without_splits_say_what_to_set(source, fields, match):
    config = tiny_config()
    config.data.source = source
    config.validation.update(fields)
    with pytest.raises(UserError, match=match):
        data.open_source(config)


def test_nothing_held_out_is_an_error_that_says_what_to_set():
    config = tiny_config()
    with pytest.raises(UserError, match="nothing of digits was held out.*fraction=0.1"):
        data.open_validation(data.open_source(config), config)


def test_generated_worlds_validate_on_new_examples_and_on_what_they_hold_out():
    config = tiny_shapes()
    source = data.open_source(config, None)
    parts = source.validation_sources(seed=0)
    assert set(parts) == {SEEN, UNSEEN}
    seen, unseen = (parts[name].records for name in (SEEN, UNSEEN))
    difficulty = DIFFICULTIES[config.shapes.difficulty]
    training = [training_scene(index, 0, difficulty) for index in range(20)]
    assert [source.records[index] for index in range(20)] == training
    for scene in [seen[index] for index in range(20)]:
        assert scene not in training
    assert [unseen[index] for index in range(20)] == [
        unseen_scene(i, 1, difficulty) for i in range(20)
    ]
    assert len({unseen[index].skill for index in range(40)}) > 2


def test_scenes_that_are_held_out_have_a_held_out_combination():
    for index in range(100):
        scene = unseen_scene(index)
        shapes = [thing.shape for thing in scene.objects]
        coloured = {(thing.colour, thing.shape) for thing in scene.objects}
        counts = {(shapes.count(shape), shape) for shape in shapes}
        pairs = {tuple(sorted(set(shapes)))}
        assert (
            coloured & scenes.UNSEEN_COLOURS
            or pairs & scenes.UNSEEN_PAIRS
            or counts & scenes.UNSEEN_COUNTS
        )


def test_validation_frames_are_those_after_as_many_moves_as_latent_steps():
    config = tiny_frozenlake()
    config.validation.num = 4
    batches = {}
    for latent_steps in (1, 3):
        config.model.thinking.latent_steps = latent_steps
        parts = data.open_validation(data.open_source(config), config)
        batches[latent_steps] = parts[SEEN].batch(np.arange(4))
    np.testing.assert_array_equal(batches[1]["x"], batches[3]["frames"][:, 0])
    assert "frames" not in batches[1]
    # Those of training begin with other maps.
    source = data.open_source(config)
    trained = np.stack([source.records[index]["x"] for index in range(4)])
    assert (trained != batches[3]["x"]).any(axis=(1, 2, 3)).all()


def test_frames_of_held_out_maps_are_of_held_out_maps(monkeypatch):
    found, make = [], frozenlake.make_map

    def make_and_note(*args, **fields):
        found.append(make(*args, **fields))
        return found[-1]

    monkeypatch.setattr(frozenlake, "make_map", make_and_note)
    config = tiny_frozenlake()
    parts = data.open_validation(data.open_source(config), config)
    for name, held_out in ((SEEN, False), (UNSEEN, True)):
        found.clear()
        parts[name].batch(np.arange(5))
        assert [is_held_out(desc) for desc in found] == [held_out] * 5


def test_decoding_is_the_same_in_every_run_and_never_mirrors(pictures):
    pictures.validation.split = "val"
    pictures.data.flip = True
    examples = data.open_validation(data.open_source(pictures), pictures)[SEEN]
    assert not examples.read.decode.flip
    again = data.open_validation(data.open_source(pictures), pictures)[SEEN]
    np.testing.assert_equal(examples.batch(np.arange(3)), again.batch(np.arange(3)))

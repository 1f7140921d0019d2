"""The input pipeline: order, sharding over hosts, resuming, decoding."""

import io
import os
import pathlib
import runpy
import signal
import subprocess
import sys

import grain
import numpy as np
import pytest
from conftest import tiny_config
from PIL import Image
from sklearn.datasets import load_digits

from tp_jax import config as config_lib
from tp_jax import data
from tp_jax.data.prepare import _ReadPixels
from tp_jax.data.transforms import DecodeImage, ReadExample, centre_crop
from tp_jax.data.workers import EndsWithParent
from tp_jax.messages.errors import UserError

ROOT = pathlib.Path(__file__).parents[1]


def batches(config, count, state=None):
    """The next `count` batches, and the state of the iterator after them."""
    source = data.open_source(config)
    iterator = data.make_iterator(source, config)
    if state:
        iterator.set_state(state)
    found = [next(iterator) for _ in range(count)]
    return found, iterator.get_state()


def test_digits_equal_those_of_scikit_learn():
    digits, source = load_digits(), data.open_source(tiny_config())
    decode = DecodeImage(8, 1, flip=False)
    for i in (0, 7, 1796):
        element = decode(source.records[i], np.random.default_rng(0))
        np.testing.assert_allclose((element["x"][..., 0] + 1) * 8, digits.images[i], atol=16 / 255)
        assert element["condition"]["label"] == digits.target[i]
        assert element["x"].dtype == np.float32


def test_an_epoch_has_every_image_once_and_the_next_has_another_order():
    config = tiny_config(batch_size=599)  # 3 · 599 = 1797
    found, _ = batches(config, 6)
    epochs = [np.concatenate([b["x"] for b in found[i : i + 3]]) for i in (0, 3)]

    def sort(images):
        return np.sort(images.reshape(len(images), -1).view("S256").ravel())

    np.testing.assert_array_equal(sort(epochs[0]), sort(epochs[1]))
    assert (epochs[0] != epochs[1]).any()


def test_seed_determines_the_order():
    first, again = batches(tiny_config(), 2)[0], batches(tiny_config(), 2)[0]
    np.testing.assert_array_equal(first[1]["x"], again[1]["x"])
    config = tiny_config()
    config.seed = 1
    assert (batches(config, 2)[0][1]["x"] != first[1]["x"]).any()


@pytest.mark.parametrize("workers", [0, 2])
def test_iterator_state_resumes_with_any_number_of_workers(workers):
    config = tiny_config()
    _, state = batches(config, 3)
    wanted = batches(config, 5)[0][3:]
    config.data.workers = workers
    found, _ = batches(config, 2, state=state)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(a["x"], b["x"])
        np.testing.assert_array_equal(a["condition"]["label"], b["condition"]["label"])


def test_two_hosts_together_read_the_batches_of_one(monkeypatch):
    wanted, _ = batches(tiny_config(), 2)
    shares = []
    for host in range(2):
        monkeypatch.setattr("jax.process_count", lambda: 2)
        monkeypatch.setattr("jax.process_index", lambda host=host: host)
        shares.append(batches(tiny_config(), 2)[0])
    for i, batch in enumerate(wanted):
        # Host p reads every second sample, starting at the p-th.
        np.testing.assert_array_equal(shares[0][i]["x"], batch["x"][0::2])
        np.testing.assert_array_equal(shares[1][i]["x"], batch["x"][1::2])


def test_flip_mirrors_half_of_the_images():
    picture = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="png")
    decode, rng = DecodeImage(8, 1, flip=True), np.random.default_rng(0)
    record = {"image": buffer.getvalue(), "label": 3}
    plain = picture[..., None] / 127.5 - 1
    seen = [decode(record, rng)["x"] for _ in range(200)]
    mirrored = [np.allclose(x, plain[:, ::-1], atol=1e-6) for x in seen]
    assert all(m or np.allclose(x, plain, atol=1e-6) for m, x in zip(mirrored, seen, strict=True))
    assert 70 < sum(mirrored) < 130


@pytest.mark.parametrize("size", [(640, 481), (97, 300), (64, 64), (50, 70)])
def test_centre_crop_is_square_and_centred(size):
    # The value of a pixel is its column, so a centred crop is symmetric around half of 255.
    ramp = np.tile(np.linspace(0, 255, size[0]), (size[1], 1)).astype(np.uint8)
    cropped = np.asarray(centre_crop(Image.fromarray(ramp), 64), np.float32)
    assert cropped.shape == (64, 64)
    slope = 255 * 64 / max(64, 64 * size[0] / min(size))
    assert cropped[:, -1].mean() - cropped[:, 0].mean() == pytest.approx(slope, rel=0.06)
    assert (cropped[:, 0] + cropped[:, -1]).mean() == pytest.approx(255, abs=6)


@pytest.fixture(scope="module")
def fake_tfds(tmp_path_factory):
    """A small data set in TFDS's own format, written without TensorFlow."""
    import tensorflow_datasets as tfds

    class FakePhotos(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
                "label": tfds.features.ClassLabel(names=["dark", "light"]),
            }
            features = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i in range(12):
                buffer, value = io.BytesIO(), 40 + 170 * (i % 2)
                picture = np.full((20 + i, 24, 3), value, np.uint8)
                Image.fromarray(picture).save(buffer, format="png")
                buffer.seek(0)
                yield i, {"image": buffer, "label": i % 2}

    folder = tmp_path_factory.mktemp("tfds")
    FakePhotos(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


def test_a_tfds_image_data_set_is_read(fake_tfds):
    config = tiny_config(batch_size=6)
    config.data.update(source="tfds/fake_photos", dir=str(fake_tfds))
    config.model.update(image_size=16, channels=3, num_classes=2)
    (batch, _), _ = batches(config, 2)
    assert batch["x"].shape == (6, 16, 16, 3)
    light = batch["x"].mean((1, 2, 3)) > 0
    np.testing.assert_array_equal(batch["condition"]["label"], light)


def test_missing_tfds_data_set_is_named(tmp_path):
    config = tiny_config()
    config.data.update(source="tfds/no_such_photos", dir=str(tmp_path))
    with pytest.raises(UserError, match="tfds/no_such_photos.*download_and_prepare.*data.dir"):
        data.open_source(config)


def test_model_without_classes_gets_label_zero():
    config = tiny_config()
    config.model.num_classes = 0
    (batch,), _ = batches(config, 1)
    assert not batch["condition"]["label"].any()


def test_pipeline_is_a_grain_iterator():
    iterator = data.make_iterator(data.open_source(tiny_config()), tiny_config())
    assert isinstance(iterator, grain.DatasetIterator)


def write_images(folder, count):
    folder.mkdir(parents=True)
    for i in range(count):
        Image.fromarray(np.full((12, 10 + i, 3), 20 * i, np.uint8)).save(folder / f"{i}.png")


def folder_config(folder, **model):
    config = tiny_config(batch_size=4)
    config.data.update(source="folder", dir=str(folder))
    config.model.update(channels=3, **model)
    return config


def test_one_error_names_all_fields_that_do_not_fit_the_images(tmp_path):
    for name in ("cats", "dogs"):
        write_images(tmp_path / name, 3)
    config = folder_config(tmp_path)
    config.model.channels, config.train.batch_size = 1, 64
    with pytest.raises(UserError, match="channels=1.* 3; .*num_classes=10.*; .*batch_size=64.* 6 "):
        data.open_source(config)


def test_images_next_to_class_folders_are_ignored_with_a_warning(tmp_path, capsys):
    write_images(tmp_path / "cats", 9)
    Image.new("RGB", (8, 8)).save(tmp_path / "stray.png")
    source = data.open_source(folder_config(tmp_path, num_classes=1))
    assert len(source.records) == 9 and source.class_names == ("cats",)
    assert "warning: 1 images next to the class folders" in capsys.readouterr().err


def test_the_config_for_own_pictures_fits_a_folder(tmp_path):
    get_config = runpy.run_path(str(ROOT / "configs" / "pictures.py"))["get_config"]
    for name in ("cats", "dogs"):
        write_images(tmp_path / "classes" / name, 6)
    write_images(tmp_path / "flat", 12)
    for variant, folder in (("", "classes"), ("unconditional", "flat")):
        config = get_config(variant)
        config.data.dir, config.train.batch_size = str(tmp_path / folder), 8
        config_lib.build(config)
        assert len(data.open_source(config).records) == 12
    with pytest.raises(UserError, match="unknown variant 'large': the only one is unconditional"):
        get_config("large")


def test_a_folder_of_images_without_class_folders_has_no_classes(tmp_path):
    write_images(tmp_path / "images", 5)
    (tmp_path / "images" / "notes.txt").write_text("no image")
    (tmp_path / "images" / "empty").mkdir()
    config = folder_config(tmp_path / "images", num_classes=0)
    (batch,), _ = batches(config, 1)
    assert batch["x"].shape == (4, 8, 8, 3) and not batch["condition"]["label"].any()
    with pytest.raises(UserError, match="num_classes=10, but folder has no classes: set 0"):
        data.open_source(folder_config(tmp_path / "images"))
    with pytest.raises(UserError, match="empty has neither images nor class folders"):
        data.open_source(folder_config(tmp_path / "images" / "empty"))


def test_workers_end_with_their_parent_also_after_sigkill():
    assert issubclass(ReadExample, EndsWithParent) and issubclass(_ReadPixels, EndsWithParent)
    script = [sys.executable, ROOT / "tests" / "orphaned_workers.py"]
    with subprocess.Popen(script, stdout=subprocess.PIPE) as run:
        workers = [int(pid) for pid in run.stdout.readline().split()]
        try:
            # Signals to the group of a terminal don't reach the workers.
            assert [os.getpgid(worker) for worker in workers] == workers and len(workers) == 1
            run.kill()
            # The workers inherited the pipe, so it ends when all of them have.
            assert run.communicate(timeout=20)[0] == b""
        except (AssertionError, subprocess.TimeoutExpired):
            for pid in (run.pid, *workers):
                os.kill(pid, signal.SIGKILL)
            raise

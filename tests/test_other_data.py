"""Data sets of Hugging Face's library, and tar shards as WebDataset writes them."""

import io
import json
import pathlib
import tarfile

import numpy as np
import pytest
from conftest import tiny_config
from PIL import Image

from tp_jax import data
from tp_jax.data.sources import open_named
from tp_jax.data.sources.captions import CaptionSource
from tp_jax.data.sources.tars import INDEX
from tp_jax.messages.errors import UserError

NUM = 500
CLASSES = ("a", "b", "c")


def encoded(index):
    """A PNG that no other index has, of another size than its neighbours."""
    pixels = np.random.default_rng(index).integers(0, 256, (9 + index % 4, 10, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="png")
    return buffer.getvalue()


def label(index):
    return index * len(CLASSES) // NUM


def add(tar, name, content):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def write_tars(folder, conditions, shards=3):
    """Write {ending: content of index} for NUM images into tars."""
    folder.mkdir(parents=True)
    for shard in range(shards):
        with tarfile.open(folder / f"train-{shard:03}.tar", "w") as tar:
            for index in np.array_split(np.arange(NUM), shards)[shard].tolist():
                add(tar, f"images/{index:06}.png", encoded(index))
                for ending, content in conditions.items():
                    add(tar, f"images/{index:06}.{ending}", content(index))
    return folder


@pytest.fixture(scope="module")
def same(tmp_path_factory):
    """The same images and labels as TFDS, a folder, a data set of Hugging Face, and tars."""
    import datasets
    import tensorflow_datasets as tfds

    class Same(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
                "label": tfds.features.ClassLabel(names=list(CLASSES)),
            }
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for index in range(NUM):
                yield index, {"image": io.BytesIO(encoded(index)), "label": label(index)}

    root = tmp_path_factory.mktemp("same")
    Same(data_dir=root / "tfds", file_format="array_record").download_and_prepare()
    for index in range(NUM):
        path = root / "folder" / CLASSES[label(index)] / f"{index:06}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(index))
    rows = {
        "picture": [{"bytes": encoded(index), "path": None} for index in range(NUM)],
        "kind": [label(index) for index in range(NUM)],
        "title": [f"number {index}" for index in range(NUM)],
    }
    features = datasets.Features(
        picture=datasets.Image(), kind=datasets.ClassLabel(names=list(CLASSES)),
        title=datasets.Value("string"),
    )  # fmt: skip
    table = datasets.Dataset.from_dict(rows, features)
    datasets.DatasetDict(train=table).save_to_disk(str(root / "datasets"))
    (root / "parquet").mkdir()
    table.to_parquet(str(root / "parquet" / "train-0.parquet"))
    write_tars(root / "tars", {"cls": lambda index: str(label(index)).encode()})
    return root


def config_of(root, source, dir, columns=()):
    config = tiny_config(batch_size=50)
    config.data.update(source=source, dir=str(root / dir), columns=columns, flip=True)
    config.model.update(image_size=8, channels=3, num_classes=3)
    return config


def batches(config, count=3):
    iterator = data.make_iterator(data.open_source(config), config)
    return [next(iterator) for _ in range(count)]


def test_the_same_examples_give_the_same_batches(same):
    wanted = batches(config_of(same, "tfds/same", "tfds"))
    for source, dir, columns in (
        ("folder", "folder", ()),
        ("datasets", "datasets", ("picture", "kind")),
        ("webdataset", "tars", ()),
    ):
        ours = batches(config_of(same, source, dir, columns))
        for found, batch in zip(ours, wanted, strict=True):
            np.testing.assert_array_equal(found["x"], batch["x"], err_msg=source)
            np.testing.assert_array_equal(found["condition"]["label"], batch["condition"]["label"])
    assert not np.array_equal(wanted[0]["x"], wanted[1]["x"])


def test_parquet_files_are_a_data_set_too(same, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    columns = ("picture", "title")
    source = open_named("config.data", "datasets", str(same / "parquet"), "train", columns)
    assert isinstance(source, CaptionSource) and len(source.records) == NUM
    record = source.records[7]
    assert record == {"image": encoded(7), "captions": ("number 7",)}


@pytest.mark.parametrize(
    ("dir", "split", "columns", "match"),
    [
        ("datasets", "test", (), r"config\.data\.split='test': .* has train: name one of them"),
        ("datasets", "train", (), "no column image or img .* there are kind, picture, title"),
        ("datasets", "train", ("picture", "class"), "no column class for labels or captions"),
        ("datasets", "train", ("kind", "title"), "kind of .* isn't a column of images"),
        ("datasets", "train", ("picture", "picture"), "can't be both the images and"),
        ("datasets", "train", ("picture",), "give two names"),
        ("folder", "train", (), "isn't a data set of Hugging Face"),
        ("none", "train", (), "doesn't exist: name a folder that Dataset.save_to_disk wrote"),
    ],
)
def test_data_sets_that_do_not_fit_are_refused(dir, split, columns, match, same):
    with pytest.raises(UserError, match=match):
        open_named("config.data", "datasets", str(same / dir), split, columns)


def test_columns_of_another_source_are_refused(same):
    with pytest.raises(UserError, match=r"config\.data\.columns=\('a',\): folder has no columns"):
        open_named("config.data", "folder", str(same / "folder"), "", ("a",))


def caption(index):
    return f" picture {index} \n".encode()


@pytest.mark.parametrize(
    ("ending", "content", "captions"),
    [
        ("txt", caption, lambda index: (f"picture {index}",)),
        ("json", lambda index: json.dumps({"caption": f"p{index}"}).encode(),
         lambda index: (f"p{index}",)),
        ("json", lambda index: json.dumps({"captions": ["x", f"p{index}"]}).encode(),
         lambda index: ("x", f"p{index}")),
    ],
)  # fmt: skip
def test_captions_in_tars(ending, content, captions, tmp_path):
    write_tars(tmp_path / "tars", {ending: content})
    source = open_named("config.data", "webdataset", str(tmp_path / "tars"), "train")
    assert isinstance(source, CaptionSource) and len(source.records) == NUM
    for index in (0, 250, 499):
        assert source.records[index] == {"image": encoded(index), "captions": captions(index)}


def test_labels_in_json_and_names_of_records(tmp_path):
    write_tars(tmp_path / "tars", {"json": lambda index: json.dumps({"label": index % 7}).encode()})
    source = open_named("config.data", "webdataset", str(tmp_path / "tars"), "train")
    assert source.class_names == tuple("0123456") and source.records[9]["label"] == 2
    assert source.record_name(499).endswith("train-002.tar: images/000499.png")


def test_tars_are_read_once_and_again_if_they_change(tmp_path, capsys, monkeypatch):
    folder = write_tars(tmp_path / "tars", {"txt": caption})
    first = open_named("config.data", "webdataset", str(folder), "train")
    assert (folder / INDEX).exists()
    with monkeypatch.context() as patch:
        patch.setattr("tp_jax.data.sources.tars._index_tar", None)
        again = open_named("config.data", "webdataset", str(folder), "train")
    np.testing.assert_array_equal(first.records.places, again.records.places)
    with tarfile.open(folder / "train-003.tar", "w") as tar:
        add(tar, "last.jpg", encoded(1))
        add(tar, "last.txt", b"one more")
    assert len(open_named("config.data", "webdataset", str(folder), "train").records) == NUM + 1


def test_an_index_that_cannot_be_written_is_done_without(tmp_path, capsys, monkeypatch):
    folder = write_tars(tmp_path / "tars", {"txt": caption})
    monkeypatch.setattr(
        "tp_jax.data.sources.tars.np.savez",
        lambda *_, **__: (_ for _ in ()).throw(PermissionError(13, "Permission denied")),
    )
    assert len(open_named("config.data", "webdataset", str(folder), "train").records) == NUM
    assert "goes on without an index of the tars" in capsys.readouterr().err


def no_condition(tar):
    add(tar, "b.png", encoded(2))


def bad_label(tar):
    add(tar, "b.png", encoded(2))
    add(tar, "b.cls", b"dog")


def no_caption(tar):
    add(tar, "b.png", encoded(2))
    add(tar, "b.txt", b"  ")


@pytest.mark.parametrize(
    ("first", "spoil", "match"),
    [
        (b"1", no_condition, r"x\.tar: b\.png has neither .*: add a label or a caption"),
        (b"1", bad_label, r"x\.tar: b\.png: .*'dog'.*: correct or remove it"),
        (None, no_caption, r"x\.tar: b\.png: it has no caption: correct or remove it"),
    ],
)
def test_records_without_a_condition_are_refused(first, spoil, match, tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        add(tar, "a.png", encoded(1))
        add(tar, "a.cls" if first else "a.txt", first or b"a caption")
        spoil(tar)
    with pytest.raises(UserError, match=match):
        open_named("config.data", "webdataset", str(tmp_path), "")


def test_what_is_no_tar_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"has no \.tar files: set config\.data\.dir"):
        open_named("config.data", "webdataset", str(tmp_path), "train")
    with tarfile.open(tmp_path / "x.tar", "w:gz") as tar:
        add(tar, "a.png", encoded(1))
    with pytest.raises(UserError, match=r"x\.tar can't be read as a tar .* must not be compressed"):
        open_named("config.data", "webdataset", str(tmp_path), "train")
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        add(tar, "a.txt", b"no picture")
    with pytest.raises(UserError, match=r"x\.tar has no images"):
        open_named("config.data", "webdataset", str(tmp_path), "train")
    assert pathlib.Path(tmp_path / "x.tar").exists()

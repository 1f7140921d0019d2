"""Sources of captioned images: MSCOCO, folders with JSON lines, and TFDS."""

import json
import shutil

import numpy as np
import pytest
from captioned_images import IMAGES, captions_of, edit_coco_annotations, make_fake_captions
from fake_imagenet import photo

from tp_jax import data
from tp_jax.data.pipeline import open_named
from tp_jax.messages.errors import UserError


def write_lines(path, entries):
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def write_jsonl(folder, name, make):
    """Write images to a folder, and a JSON lines file with the line `make(i)` for each of them."""
    folder.mkdir(parents=True)
    for i in range(IMAGES):
        (folder / f"{i}.jpg").write_bytes(photo(i))
    write_lines(folder / name, [make(i) for i in range(IMAGES)])


def check_records(source, count=IMAGES):
    assert source.condition_kind == "caption" and len(source.records) == count
    assert source.image_size is None and source.channels == 3 and source.class_names == ()
    for i in range(count):
        record = source.records[i]
        assert bytes(record["image"]) == photo(i)
        assert record["captions"] == tuple(captions_of(i))


def test_coco_is_read_in_the_order_of_image_ids(coco):
    source = open_named("config.data", "coco", str(coco), "train2017")
    check_records(source)
    assert source.record_name(3).endswith("train2017/000000000003.jpg")


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("captions.jsonl", lambda i: {"file": f"{i}.jpg", "captions": captions_of(i)}),
        ("train.jsonl", lambda i: {"file": f"./{i}.jpg", "captions": captions_of(i)}),
        ("metadata.jsonl", lambda i: {"file_name": f"{i}.jpg", "text": captions_of(i)}),
        ("train/metadata.jsonl", lambda i: {"file_name": f"{i}.jpg", "text": captions_of(i)}),
    ],
)
def test_folder_with_json_lines_is_read_in_the_order_of_lines(tmp_path, name, make):
    place = tmp_path / "set" / name
    write_jsonl(place.parent, place.name, make)
    if place.name == "train.jsonl":
        # The folder also has the images of another split.
        write_lines(place.with_name("captions.jsonl"), [{"file": "x.jpg", "caption": "a ring"}])
        place.with_name("x.jpg").write_bytes(photo(0))
    check_records(open_named("config.data", "captions", str(tmp_path / "set"), "train"))


def test_several_lines_of_an_image_are_its_captions(tmp_path):
    write_jsonl(tmp_path / "set", "captions.jsonl", lambda i: {})
    lines = [{"file": f"{i}.jpg", "caption": c} for i in range(IMAGES) for c in captions_of(i)]
    write_lines(tmp_path / "set" / "captions.jsonl", lines[::-1])
    source = open_named("config.data", "captions", str(tmp_path / "set"), "")
    assert source.records[IMAGES - 1]["captions"] == tuple(captions_of(0)[::-1])


def test_tfds_data_sets_with_captions_give_captions(tmp_path):
    make_fake_captions(tmp_path)
    source = open_named("config.data", "tfds/fake_captions", str(tmp_path), "train")
    # TFDS shuffles the records.
    records = [source.records[i] for i in range(IMAGES)]
    found = {bytes(record["image"]): record["captions"] for record in records}
    assert found == {photo(i): tuple(captions_of(i)) for i in range(IMAGES)}
    assert source.condition_kind == "caption" and len(source.records) == IMAGES


def test_a_random_caption_is_chosen_and_the_pixels_stay_the_same(coco):
    source = open_named("config.data", "coco", str(coco), "train2017")
    decode = source.decoder(32, False)
    examples = [decode(source.records[2], np.random.default_rng(seed)) for seed in range(60)]
    captions = [example["condition"]["caption"] for example in examples]
    assert all(captions.count(caption) > 8 for caption in captions_of(2))
    assert examples[0]["x"].shape == (32, 32, 3) and examples[0]["x"].dtype == np.float32
    assert all((example["x"] == examples[0]["x"]).all() for example in examples)
    np.testing.assert_array_equal(
        source.decoder(32, True)(source.records[2], np.random.default_rng(0))["x"],
        data.source.DecodeImage(32, 3, True)(
            {"image": photo(2), "label": 0}, np.random.default_rng(0)
        )["x"],
    )


COCO = [
    (lambda f: shutil.rmtree(f / "annotations"), "captions_train2017.json doesn't exist"),
    (
        lambda f: shutil.rmtree(f / "train2017"),
        "train2017 doesn't exist: config.data.dir must have MSCOCO's layout",
    ),
    (lambda f: shutil.rmtree(f), "config.data.dir=.*coco' doesn't exist: name a folder"),
    (
        lambda f: (f / "annotations" / "captions_train2017.json").write_text('{"images": ['),
        "captions_train2017.json is invalid JSON: .*correct it",
    ),
    (
        lambda f: (f / "annotations" / "captions_train2017.json").write_bytes(b"\xff\xfe{}"),
        "captions_train2017.json: isn't UTF-8 text",
    ),
    (
        lambda f: edit_coco_annotations(lambda c: c.pop("images"), f),
        "doesn't have the format of MSCOCO's captions",
    ),
    (
        lambda f: edit_coco_annotations(lambda c: c["images"].clear(), f),
        ": 34 captions refer to images",
    ),
    (
        lambda f: edit_coco_annotations(lambda c: c["annotations"][0].update(caption=" "), f),
        "annotation 110: the caption ' ' is empty",
    ),
    (
        lambda f: edit_coco_annotations(lambda c: c.update(annotations=c["annotations"][7:]), f),
        "3 images in .* have no caption in .*json, the first 000000000009.jpg: write captions",
    ),
    (
        lambda f: (f / "train2017" / "extra.jpg").write_bytes(photo(0)),
        "1 images in .* have no caption in .*json, the first extra.jpg",
    ),
    (
        lambda f: (f / "train2017" / "000000000004.jpg").unlink(),
        "names 1 images that aren't in .*train2017, the first 000000000004.jpg: add the images",
    ),
]


@pytest.mark.parametrize(("spoil", "match"), COCO)
def test_errors_in_coco_files_are_named(coco, tmp_path, spoil, match):
    shutil.copytree(coco, tmp_path / "coco")
    spoil(tmp_path / "coco")
    with pytest.raises(UserError, match=match):
        open_named("config.data", "coco", str(tmp_path / "coco"), "train2017")


LINES = [
    ('{"file": "0.jpg", "caption"', "captions.jsonl, line 2 is invalid JSON"),
    ('["0.jpg", "a ring"]', "line 2 names no image: it must be"),
    ('{"caption": "a ring"}', "line 2 names no image: it must be"),
    ('{"file": "0.jpg"}', "line 2: 0.jpg has no caption: add one"),
    ('{"file": "0.jpg", "captions": []}', "line 2: 0.jpg has no caption: add one"),
    ('{"file": "0.jpg", "caption": "  "}', "line 2: the caption '  ' is empty"),
    ('{"file": "0.jpg", "captions": ["a ring", 3]}', "line 2: the caption '3' is empty or not"),
    ('{"file": "9.jpg", "caption": "a ring"}', "names 1 images that aren't in .*the first 9.jpg"),
    ("", "1 images in .* have no caption in .*captions.jsonl, the first 0.jpg"),
]


@pytest.mark.parametrize(("line", "match"), LINES)
def test_errors_in_json_lines_are_named(tmp_path, line, match):
    for i in range(2):
        (tmp_path / f"{i}.jpg").write_bytes(photo(i))
    (tmp_path / "captions.jsonl").write_text(f'{{"file": "1.jpg", "caption": "a ring"}}\n{line}\n')
    with pytest.raises(UserError, match=match):
        open_named("config.data", "captions", str(tmp_path), "train")


def test_folder_without_captions_is_refused(tmp_path):
    with pytest.raises(UserError, match="has none of train.jsonl, captions.jsonl, metadata.jsonl"):
        open_named("config.data", "captions", str(tmp_path), "train")
    (tmp_path / "captions.jsonl").write_text("\n")
    with pytest.raises(UserError, match="captions.jsonl holds no captions"):
        open_named("config.data", "captions", str(tmp_path), "train")

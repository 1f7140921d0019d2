"""Captioned images: preparing them as latents with text embeddings, and training on them."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from captioned_images import CAPTIONS_PER_IMAGE, IMAGES, captions_of, edit_coco_annotations
from etils import epath
from fake_imagenet import make_autoencoder
from resuming import FakeWriter, assert_identical, read_checkpoint

from tp_jax import config as config_lib
from tp_jax import data
from tp_jax.data import prepare as preparation
from tp_jax.data.prepare import prepare
from tp_jax.data.sources.latents import HEADER, NULL_TEXT, open_latents
from tp_jax.files.atomic import write_json
from tp_jax.latents.codec import load_codec
from tp_jax.messages.errors import UserError
from tp_jax.parallel.axes import ONE_DEVICE
from tp_jax.parallel.mesh import create_mesh
from tp_jax.text.words import WordEncoder
from tp_jax.train import metrics
from tp_jax.train.loop import train
from tp_jax.workdir.record import read_text_space
from tp_jax.worlds.shapes.scenes import MAX_WORDS, WORDS

ENCODER = WordEncoder(WORDS, MAX_WORDS)


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    return make_autoencoder(tmp_path_factory.mktemp("weights") / "vae")


@pytest.fixture(scope="module", autouse=True)
def one_codec(autoencoder):
    """Load and compile one codec for all tests of this file."""
    fields = config_lib.default().autoencoder
    fields.path = str(autoencoder)
    codec = load_codec(fields, create_mesh(ONE_DEVICE, jax.devices()[:1]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparation, "load_codec", lambda config, mesh: codec)
        yield codec


def captions_config(coco, autoencoder, folder):
    config = config_lib.default("mmdit", "flow")
    space = ENCODER.space
    config.model.update(
        image_size=8, channels=4, patch=4, depth=2, width=16, heads=2, max_grid=8, base_grid=4,
        text_tokens=space.tokens, text_width=space.width, pooled_width=space.pooled_width,
    )  # fmt: skip
    config.model.thinking.update(layers=(0,), rank=2, gate_width=4)
    config.text.encoder = "shapes"
    config.autoencoder.path = str(autoencoder)
    config.prepare.update(
        source="coco", dir=str(coco), split="train2017", records_per_shard=5, batch_size=4
    )
    config.data.update(source="latents", dir=str(folder))
    config.train.update(steps=4, batch_size=4, log_every=2, samples=0, ema_decay=0.9)
    config.checkpoint.every_steps = 2
    return config


@pytest.fixture
def config(coco, autoencoder, tmp_path):
    return captions_config(coco, autoencoder, tmp_path / "latents")


@pytest.fixture(scope="module")
def prepared(coco, autoencoder, tmp_path_factory, one_codec):
    """A folder of latents and text embeddings. Tests must not change it."""
    folder = epath.Path(tmp_path_factory.mktemp("prepared")) / "latents"
    prepare(captions_config(coco, autoencoder, folder), folder)
    return folder


@pytest.fixture
def copied(prepared, config):
    """A copy of the latents in the folder that the config names; tests may damage it."""
    shutil.copytree(prepared, config.data.dir)
    return epath.Path(config.data.dir)


def file_contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_prepared_text_equals_the_encoder_output(prepared):
    source = open_latents(str(prepared))
    assert source.condition_kind == "text" and source.text_space == ENCODER.space
    assert len(source.records) == IMAGES and len(list(prepared.glob("*.arrayrecord"))) == 3
    empty = ENCODER.encode([""])
    for i in range(IMAGES):
        encoded, moments = source.header.plan.decode(source.records[i])
        wanted = ENCODER.encode(captions_of(i))
        np.testing.assert_array_equal(encoded.text, wanted["text"])
        np.testing.assert_array_equal(encoded.pooled, wanted["pooled"])
        assert encoded.text.dtype == np.float16 and moments.shape == (2, 2, 8, 8, 4)
    decode, seen = source.decoder(8, False), set()
    for seed in range(40):
        condition = decode(source.records[1], np.random.default_rng(seed))["condition"]
        wanted = ENCODER.encode(captions_of(1))
        (row,) = np.flatnonzero((wanted["pooled"] == condition["pooled"]).all(1))
        np.testing.assert_array_equal(condition["text"], wanted["text"][row])
        np.testing.assert_array_equal(condition["null_text"], empty["text"][0])
        np.testing.assert_array_equal(condition["null_pooled"], empty["pooled"][0])
        assert all(array.dtype == np.float16 for array in condition.values())
        seen.add(int(row))
    assert seen == set(range(CAPTIONS_PER_IMAGE))


def test_latents_are_the_same_with_text_as_with_labels(prepared, coco, config, tmp_path):
    (tmp_path / "classes").mkdir()
    shutil.copytree(coco / "train2017", tmp_path / "classes" / "one")
    labels = config_lib.default("dit", "flow")
    labels.model.update(image_size=8, channels=4, num_classes=1)
    labels.autoencoder.path = config.autoencoder.path
    labels.prepare.update(source="folder", dir=str(tmp_path / "classes"), records_per_shard=5)
    prepare(labels, epath.Path(tmp_path / "labels"))
    with_text, with_labels = open_latents(str(prepared)), open_latents(str(tmp_path / "labels"))
    for a, b in zip(with_text.records, with_labels.records, strict=True):
        found, wanted = with_text.header.plan.decode(a), with_labels.header.plan.decode(b)
        np.testing.assert_array_equal(found[1], wanted[1])
    assert with_text.header.mean == with_labels.header.mean
    # The header of labels has no fields for text, as before captions were supported.
    fields = json.loads((tmp_path / "labels" / HEADER).read_text())
    assert not {"text", "num", "seed", "captions"} & set(fields["plan"])
    assert "null_text" not in fields


def test_files_depend_on_neither_the_batch_size_nor_an_interruption(prepared, config, monkeypatch):
    folder, write_shard = epath.Path(config.data.dir), preparation.write_shard
    config.prepare.batch_size = 3

    def stopping(folder, plan, shard, records, bar):
        if shard == 1:
            next(records)
            raise KeyboardInterrupt
        write_shard(folder, plan, shard, records, bar)

    monkeypatch.setattr(preparation, "write_shard", stopping)
    with pytest.raises(KeyboardInterrupt):
        prepare(config, folder)
    with pytest.raises(UserError, match="isn't finished: run the same tp_jax.prepare again"):
        data.open_source(config)
    made = []
    monkeypatch.setattr(
        preparation, "write_shard", lambda *args: (made.append(args[2]), write_shard(*args))
    )
    config.prepare.batch_size = 7
    prepare(config, folder)
    assert made == [1, 2]
    assert file_contents(folder) == file_contents(prepared)


def test_seed_chooses_the_images_and_the_first_captions_are_kept(config, tmp_path):
    config.prepare.update(num=5, captions=2)

    def chosen(seed):
        folder = epath.Path(tmp_path / str(seed))
        config.seed = seed
        prepare(config, folder)
        source = open_latents(str(folder))
        assert source.header.plan.records == len(source.records) == 5
        found = [source.header.plan.decode(record)[0].pooled for record in source.records]
        every = [ENCODER.encode(captions_of(i)[:2])["pooled"] for i in range(IMAGES)]
        return [
            next(i for i in range(IMAGES) if np.array_equal(every[i], pooled)) for pooled in found
        ]

    first = chosen(0)
    # The choice for a seed must never change.
    assert first == [0, 1, 3, 6, 7] and chosen(1) == [0, 1, 8, 10, 11]
    config.prepare.num = IMAGES + 1
    with pytest.raises(UserError, match="config.prepare.num=13, but coco has 12 images: choose"):
        prepare(config, epath.Path(config.data.dir))
    config.prepare.num, config.seed = 5, 7
    with pytest.raises(UserError, match="begun with other settings: seed was 1, now 7"):
        prepare(config, epath.Path(tmp_path / "1"))


def test_preparation_does_not_resume_with_another_encoder(copied, config, monkeypatch):
    other = WordEncoder((*WORDS[1:], WORDS[0]), MAX_WORDS)
    monkeypatch.setattr(preparation, "load_encoder", lambda fields: other)
    with pytest.raises(UserError, match="begun with other settings: text was TextSpace"):
        prepare(config, copied)


def test_too_long_caption_is_refused_before_anything_is_written(coco, config, tmp_path):
    shutil.copytree(coco, tmp_path / "coco")
    long = "a red circle left of a blue square and a ring"
    edit_coco_annotations(lambda c: c["annotations"][1].update(caption=long), tmp_path / "coco")
    config.prepare.dir = str(tmp_path / "coco")
    folder = epath.Path(config.data.dir)
    with pytest.raises(UserError, match="000000000010.jpg: the prompt .* has 11 words.*at most 8"):
        prepare(config, folder)
    assert not folder.exists()
    # The long caption is not among the first two.
    config.prepare.captions = 2
    prepare(config, folder)


def test_embeddings_that_overflow_float16_are_refused(config, monkeypatch):
    for value in (1e5, np.nan):

        class Loud(WordEncoder):
            def encode(self, prompts, value=value):
                found = super().encode(prompts)
                found["text"][[prompt.startswith("three blue") for prompt in prompts]] = value
                return found

        monkeypatch.setattr(preparation, "load_encoder", lambda f, e=Loud: e(WORDS, MAX_WORDS))
        with pytest.raises(
            UserError, match="000000000008.jpg: the text encoder returns (100000|nan)"
        ):
            prepare(config, epath.Path(config.data.dir))


def test_corrupt_captioned_image_is_named_or_skipped_with_its_text(coco, config, tmp_path):
    shutil.copytree(coco, tmp_path / "coco")
    broken = tmp_path / "coco" / "train2017" / "000000000002.jpg"
    broken.write_bytes(broken.read_bytes()[:100])
    config.prepare.dir, folder = str(tmp_path / "coco"), epath.Path(config.data.dir)
    with pytest.raises(UserError, match="000000000002.jpg can't be read.*skip_corrupt=true"):
        prepare(config, folder)
    config.prepare.skip_corrupt = True
    prepare(config, epath.Path(tmp_path / "again"))
    source = open_latents(str(tmp_path / "again"))
    pooled = [source.header.plan.decode(record)[0].pooled for record in source.records]
    for i, found in zip([0, 1, *range(3, IMAGES)], pooled, strict=True):
        np.testing.assert_array_equal(found, ENCODER.encode(captions_of(i))["pooled"])


def test_text_of_the_empty_prompt_is_checked_and_restored(copied, prepared, config):
    path = copied / NULL_TEXT
    for spoil, match in (
        (lambda: path.write_bytes(path.read_bytes()[:-1] + b"x"), "null_text.npz is damaged"),
        (path.unlink, "null_text.npz is missing: run the same tp_jax.prepare again"),
    ):
        spoil()
        with pytest.raises(UserError, match=match):
            data.open_source(config)
        prepare(config, copied)
        assert file_contents(copied) == file_contents(prepared)


def test_settings_that_do_not_fit_together_are_refused(prepared, config):
    def refused(match, call, **fields):
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
        with pytest.raises(UserError, match=match):
            call(changed)

    def prepare_from_scratch(config):
        prepare(config, epath.Path(config.data.dir))

    dit = config_lib.default("dit", "flow")
    dit.prepare.update(**config.prepare.to_dict())
    dit.autoencoder.path = config.autoencoder.path
    with pytest.raises(UserError, match="'coco' has captions, but a dit model takes labels"):
        prepare_from_scratch(dit)
    refused("'digits' has labels, but a mmdit", prepare_from_scratch, prepare__source="digits")
    refused("'shapes' makes its examples on demand", prepare_from_scratch, prepare__source="shapes")
    refused("text_width=9, but that of config.text", prepare_from_scratch, model__text_width=9)
    refused("prepare.captions=-1: must be 0", prepare_from_scratch, prepare__captions=-1)
    dit.prepare.update(source="digits", captions=1)
    with pytest.raises(UserError, match="captions=1, but .*'digits' has labels: set 0"):
        prepare_from_scratch(dit)
    assert not epath.Path(config.data.dir).exists()
    config.data.dir = str(prepared)
    refused("model.text_tokens=9, but that of the text in", data.open_source, model__text_tokens=9)


@pytest.mark.slow
def test_training_on_prepared_captions_resumes(prepared, config, tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "TensorBoardWriter", lambda workdir: FakeWriter())
    config.data.dir, workdir = str(prepared), epath.Path(tmp_path / "run")
    # Training needs no autoencoder; only sample grids would.
    config.autoencoder.path = ""
    train(config, workdir)
    assert read_text_space(workdir) == ENCODER.space
    wanted, _ = read_checkpoint(workdir, 4)
    shutil.rmtree(workdir / "checkpoints" / "4")
    train(config, workdir)
    assert_identical(read_checkpoint(workdir, 4)[0], wanted)

    other = dataclasses.replace(ENCODER.space, identity="e" * 64)
    write_json(workdir / "text.json", dataclasses.asdict(other))
    with pytest.raises(UserError, match="embeddings of another encoder: identity eeeee.*new workd"):
        train(config, workdir)
    (workdir / "text.json").write_text("{")
    with pytest.raises(UserError, match="text.json is damaged"):
        train(config, workdir)


def test_sample_grids_use_the_captions_of_the_first_records(prepared, config):
    config.data.dir = str(prepared)
    source = data.open_source(config)
    found = data.example_conditions(source, None, IMAGES + 2)
    assert found["text"].shape == (IMAGES + 2, MAX_WORDS, ENCODER.space.width)
    # After the last record, the first follows again.
    drawn = (ENCODER.encode(captions_of(0))["pooled"] == found["pooled"][-2]).all(1)
    assert drawn.sum() == 1 and found["null_text"].shape == found["text"].shape

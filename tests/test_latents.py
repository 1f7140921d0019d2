"""Preparing latents: the files, resuming, errors, and reading them in training."""

import json
import shutil

import jax
import numpy as np
import pytest
from conftest import tiny_config
from etils import epath
from fake_imagenet import IMAGES, make_autoencoder, make_fake_imagenet, photo

from tp_jax import data
from tp_jax.data import prepare as preparation
from tp_jax.data.pipeline import open_named
from tp_jax.data.prepare import prepare
from tp_jax.data.shards import write_shard
from tp_jax.data.sources.latents import HEADER, open_latents
from tp_jax.data.transforms import decode_pixels
from tp_jax.latents.codec import load_codec
from tp_jax.messages.errors import UserError
from tp_jax.messages.progress import progress_bar
from tp_jax.parallel import processes
from tp_jax.parallel.axes import ONE_DEVICE
from tp_jax.parallel.mesh import create_mesh
from tp_jax.pictures.reading import read_rgb
from tp_jax.sampling.loaded import load
from tp_jax.train.loop import train

SHARDS = 3


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    make_fake_imagenet(folder)
    return folder


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    return make_autoencoder(tmp_path_factory.mktemp("weights") / "vae")


def latents_config(photos, autoencoder, folder):
    config = tiny_config(batch_size=8)
    config.model.update(image_size=8, channels=4, num_classes=1000)
    config.autoencoder.path = str(autoencoder)
    config.prepare.update(dir=str(photos), records_per_shard=10, batch_size=8)
    config.data.update(source="latents", dir=str(folder), flip=True)
    return config


@pytest.fixture
def config(photos, autoencoder, tmp_path):
    return latents_config(photos, autoencoder, tmp_path / "latents")


@pytest.fixture(scope="module")
def prepared(photos, autoencoder, tmp_path_factory):
    """A folder of latents. Tests must not change it."""
    folder = epath.Path(tmp_path_factory.mktemp("prepared")) / "latents"
    prepare(latents_config(photos, autoencoder, folder), folder)
    return folder


@pytest.fixture
def copied(prepared, config):
    """A copy of the latents in the folder that the config names; tests may damage it."""
    shutil.copytree(prepared, config.data.dir)
    return epath.Path(config.data.dir)


def one_device_codec(config):
    mesh = create_mesh(ONE_DEVICE, jax.devices()[:1])
    return load_codec(config.autoencoder, mesh)


def shard_bytes(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.arrayrecord")}


def test_records_hold_the_moments_of_the_crop_and_its_mirror_image(prepared, config):
    source = open_latents(str(prepared), "")
    assert len(source.records) == IMAGES and len(shard_bytes(prepared)) == SHARDS
    raw = open_named("", "tfds/imagenet2012", config.prepare.dir, "train")
    loaded = one_device_codec(config).autoencoder
    for i in (0, 13, 23):
        label, moments = source.header.plan.decode(source.records[i])
        pixels = decode_pixels(raw.records[i]["image"], 64, 3) / np.float32(127.5) - 1
        assert label == raw.records[i]["label"]
        both = np.stack([pixels, pixels[:, ::-1]])
        mean, std = loaded.model.apply({"params": loaded.params}, both, method="encode")
        np.testing.assert_allclose(moments[:, 0], mean, atol=2e-3)
        np.testing.assert_allclose(moments[:, 1], std, rtol=2e-3)


def test_header_has_the_statistics_of_the_training_data(prepared):
    source = open_latents(str(prepared), "")
    decode, rng = source.decoder(8, flip=True), np.random.default_rng(0)
    seen = [decode(source.records[i % IMAGES], rng)["x"] for i in range(40 * IMAGES)]
    np.testing.assert_allclose(source.header.mean, np.mean(seen, (0, 1, 2)), atol=0.01)
    np.testing.assert_allclose(source.header.std, np.std(seen, (0, 1, 2)), rtol=0.02)


def test_flip_uses_the_mirror_image_half_of_the_time(prepared):
    source, rng = open_latents(str(prepared), ""), np.random.default_rng(0)
    plan = source.header.plan
    means = (plan.decode(source.records[3])[1][:, 0].astype(np.float32)) * plan.autoencoder.scale

    def mirrored(flip):
        decode = source.decoder(8, flip=flip)
        latents = [decode(source.records[3], rng)["x"] for _ in range(200)]
        return sum(np.abs(x - means[1]).mean() < np.abs(x - means[0]).mean() for x in latents)

    assert mirrored(False) == 0
    assert 70 < mirrored(True) < 130


def test_files_depend_on_neither_batch_size_nor_devices(prepared, config, monkeypatch):
    config.prepare.batch_size = 5
    one = jax.devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda: one)
    prepare(config, epath.Path(config.data.dir))
    assert shard_bytes(epath.Path(config.data.dir)) == shard_bytes(prepared)


def test_two_processes_write_the_files_of_one(prepared, config, monkeypatch):
    folder, codec = epath.Path(config.data.dir), one_device_codec(config)
    monkeypatch.setattr(preparation, "load_codec", lambda config, mesh: codec)
    monkeypatch.setattr(processes, "broadcast_from_first", lambda value: value)
    preparation.start_folder(folder, open_latents(str(prepared)).header.plan)
    monkeypatch.setattr(preparation.multihost_utils, "sync_global_devices", lambda name: None)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    # Process 0 writes the header after all shards, so it runs last here.
    for process in (1, 0):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        prepare(config, folder)
        assert len(shard_bytes(folder)) == {1: 1, 0: 3}[process]
    assert shard_bytes(folder) == shard_bytes(prepared)
    assert (folder / HEADER).read_text() == (prepared / HEADER).read_text()


def test_interrupted_preparation_resumes_at_the_unfinished_shard(prepared, config, monkeypatch):
    folder, write_shard = epath.Path(config.data.dir), preparation.write_shard

    def stopping(folder, plan, shard, records, bar):
        if shard == 1:
            next(records)
            raise KeyboardInterrupt
        write_shard(folder, plan, shard, records, bar)

    monkeypatch.setattr(preparation, "write_shard", stopping)
    with pytest.raises(KeyboardInterrupt):
        prepare(config, folder)
    assert len(shard_bytes(folder)) == 1
    with pytest.raises(UserError, match="isn't finished: run the same tp_jax.prepare again"):
        data.open_source(config)
    made = []
    monkeypatch.setattr(
        preparation, "write_shard", lambda *args: (made.append(args[2]), write_shard(*args))
    )
    prepare(config, folder)
    assert made == [1, 2]
    assert shard_bytes(folder) == shard_bytes(prepared)


def test_truncated_shard_is_named_and_written_again(prepared, copied, config):
    shard = copied / "latents-00001-of-00003.arrayrecord"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(UserError, match="latents-00001.*bytes instead of.*same tp_jax.prepare"):
        data.open_source(config)
    prepare(config, copied)
    assert shard_bytes(copied) == shard_bytes(prepared)
    data.open_source(config)


def damage(shard, part):
    """Flip 64 bytes at this fraction of the file."""
    content = bytearray(shard.read_bytes())
    start = int(part * len(content))
    for at in range(start, start + 64):
        content[at] ^= 0xFF
    shard.write_bytes(bytes(content))


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_record_is_named_or_skipped_on_request(copied, config, workers):
    damage(copied / "latents-00000-of-00003.arrayrecord", 0.1)
    config.data.workers = workers

    def two_epochs():
        iterator = data.make_iterator(data.open_source(config), config)
        return [next(iterator) for _ in range(2 * IMAGES // 8)]

    with pytest.raises(UserError, match="latents-00000.*record [0-9].*data.skip_corrupt=true"):
        two_epochs()
    config.data.skip_corrupt = True
    assert len(two_epochs()) == 6


def test_unreadable_shard_is_named(copied, config):
    damage(copied / "latents-00001-of-00003.arrayrecord", 0.5)
    with pytest.raises(UserError, match="latents-00001.*is damaged.*delete it.*tp_jax.prepare"):
        data.open_source(config)


def test_latents_of_another_autoencoder_or_scale_are_refused(prepared, config, tmp_path):
    config.data.dir = str(prepared)
    space = one_device_codec(config).space
    data.open_source(config, space)
    config.autoencoder.path = str(make_autoencoder(tmp_path / "other", seed=1))
    other = one_device_codec(config).space
    with pytest.raises(UserError, match="another autoencoder: its identity is .*prepare the"):
        data.open_source(config, other)
    scaled = data.LatentSpace(space.identity, 4, 1.0, 0.0)
    with pytest.raises(UserError, match="scale is 0.18215, that of config.autoencoder.path is 1.0"):
        data.open_source(config, scaled)
    with pytest.raises(UserError, match="header.json: prepare it with"):
        config.data.dir = str(tmp_path)
        data.open_source(config)


def test_preparation_does_not_resume_with_other_settings(copied, config):
    config.prepare.records_per_shard = 7
    with pytest.raises(UserError, match="begun with other settings: records_per_shard was 10"):
        prepare(config, copied)
    config.prepare.records_per_shard = 10
    config.autoencoder.path = ""
    with pytest.raises(UserError, match="config.autoencoder.path is empty"):
        prepare(config, copied)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e5])
@pytest.mark.parametrize(("part", "name"), [(0, "mean"), (1, "standard deviation")])
def test_a_latent_that_is_not_finite_is_refused_by_file(
    value, part, name, config, tmp_path, monkeypatch
):
    write_photos(tmp_path / "photos")
    config.prepare.update(source="folder", dir=str(tmp_path / "photos"), records_per_shard=2)
    folder, codec = epath.Path(config.data.dir), one_device_codec(config)

    def moments(codec, images):
        found = np.zeros((2, 2, len(images), 8, 8, 4), np.float32)
        found[1, part, 3, 5, 6, 2] = value
        return found

    monkeypatch.setattr(preparation, "load_codec", lambda config, mesh: codec)
    monkeypatch.setattr(preparation, "_moments_with_flips", moments)
    found = "nan" if value != value else "inf"
    match = rf"1/1.png: the {name} of its latent in float16 has the value {found} at \[1, 5, 6, 2\]"
    with pytest.raises(UserError, match=match.replace("1/1.png", "class_1/1.png")):
        prepare(config, folder)
    assert sorted(shard_bytes(folder)) == ["latents-00000-of-00003.arrayrecord"]
    assert not (folder / HEADER).exists()


def test_old_latents_that_are_not_finite_are_named_and_prepared_again(prepared, copied, config):
    source = open_latents(str(copied))
    label, moments = source.header.plan.decode(source.records[13])
    changed = moments.copy()
    changed[:, 0, 2, 2, 1] = np.nan
    records = [source.records[i] for i in range(10, 20)]
    records[3] = source.header.plan.encode(label, changed)
    with progress_bar(10, "") as bar:
        write_shard(copied, source.header.plan, 1, iter(records), bar)
    config.train.batch_size = IMAGES
    with pytest.raises(UserError, match="latents-00001.*record 3 can't be read.*latent has NaN or"):
        next(data.make_iterator(data.open_source(config), config))
    config.data.skip_corrupt = True
    assert np.isfinite(next(data.make_iterator(data.open_source(config), config))["x"]).all()
    prepare(config, copied)
    assert shard_bytes(copied) == shard_bytes(prepared)


def write_photos(folder, count=6):
    for i in range(count):
        path = folder / f"class_{i % 2}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photo(i, "png"))


def test_class_folders_are_prepared_and_a_corrupt_image_is_named(config, tmp_path):
    write_photos(tmp_path / "photos")
    broken = tmp_path / "photos" / "class_1" / "3.png"
    broken.write_bytes(broken.read_bytes()[:200])
    config.prepare.update(source="folder", dir=str(tmp_path / "photos"), records_per_shard=2)
    folder = epath.Path(config.data.dir)
    with pytest.raises(UserError, match="class_1/3.png can't be read.*skip_corrupt=true"):
        prepare(config, folder)
    config.prepare.skip_corrupt = True
    prepare(config, folder.parent / "again")
    source = open_latents(str(folder.parent / "again"), "")
    labels = [source.header.plan.decode(record)[0] for record in source.records]
    assert labels == [0, 0, 0, 1, 1]
    files = open_named("", "folder", config.prepare.dir, "").records.files
    assert [epath.Path(file).stem for file, _ in files] == ["0", "2", "4", "1", "3", "5"]
    assert source.class_names == ("class_0", "class_1")
    assert len(source.header.skipped) == 1 and "3.png" in source.header.skipped[0]


def test_encoding_on_the_fly_gives_the_prepared_distribution(prepared, config):
    config.data.update(source="tfds/imagenet2012", dir=config.prepare.dir, flip=False)
    codec = one_device_codec(config)
    source = data.open_source(config, codec.space)
    assert data.encodes_on_the_fly(source, codec.space)
    batch = next(data.make_iterator(source, config, codec.space))
    assert batch["x"].shape == (8, 64, 64, 3)
    index = np.arange(8, dtype=np.int32)
    samples = [np.asarray(codec.encode(batch["x"], index, 0, step)) for step in range(60)]
    ready = open_latents(str(prepared), "")
    plan = ready.header.plan
    for row, label in enumerate(batch["condition"]["label"]):
        mean, std = plan.decode(next(r for r in ready.records if plan.decode(r)[0] == label))[1][0]
        scale = plan.autoencoder.scale
        latents = np.stack([sample[row] for sample in samples])
        error = np.abs(latents.mean(0) / scale - mean) / (std.astype(np.float32) / np.sqrt(60))
        assert error.max() < 5
        assert latents.std(0).mean() / scale == pytest.approx(std.mean(), rel=0.1)
    # The noise of a sample depends on its index, not on the rest of the batch.
    half = codec.encode(batch["x"][4:], index[4:], 0, 0)
    np.testing.assert_allclose(half, samples[0][4:], rtol=1e-6, atol=1e-7)


def test_decoding_reverts_the_scale(config):
    codec = one_device_codec(config)
    z = np.random.default_rng(0).standard_normal((3, 8, 8, 4)).astype(np.float32)
    loaded = codec.autoencoder
    wanted = loaded.model.apply({"params": loaded.params}, z, method="decode")
    found = codec.decode(z * np.float32(loaded.config.scale))
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_each_shard_has_a_json_file_with_its_counts(prepared):
    counts = json.loads((prepared / "latents-00002-of-00003.arrayrecord.json").read_text())
    assert counts["count"] == 4 and counts["skipped"] == []


@pytest.mark.slow
def test_training_encodes_on_the_fly_and_writes_sample_grids_of_pixels(config, tmp_path):
    config.data.update(source="tfds/imagenet2012", dir=config.prepare.dir)
    config.train.update(steps=2, sample_every=2, samples=4)
    train(config, epath.Path(tmp_path) / "run")
    # One row of four images of 64×64 pixels, twice as large, in cells of 136, with a caption of 15
    # below each.
    grid = read_rgb(epath.Path(tmp_path / "run" / "samples" / "00000002.png"))
    assert grid.shape == (128 + 8 + 15, 4 * 136, 3)
    assert load(epath.Path(tmp_path) / "run").codec is not None


def test_truncated_tfds_shard_is_named(config, photos, tmp_path):
    shutil.copytree(photos, tmp_path / "truncated")
    (file,) = (tmp_path / "truncated").rglob("*.array_record*")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    config.prepare.dir = str(tmp_path / "truncated")
    with pytest.raises(UserError, match="tfds/imagenet2012|record [0-9]+ can't be read"):
        prepare(config, epath.Path(config.data.dir))


def test_wrong_settings_are_refused_before_anything_is_written(config, tmp_path):
    folder = epath.Path(config.data.dir)
    cases = [
        ("autoencoder.tile", 33, "config.autoencoder.tile=33: must be 0 or a multiple of 32"),
        ("prepare.dir", str(tmp_path), "config.prepare.source=tfds/imagenet2012.*prepare.dir"),
        ("prepare.split", "nope", "config.prepare.source=tfds/imagenet2012, split 'nope'"),
        ("prepare.source", "synthetic", "config.prepare.source='synthetic' makes its examples"),
        ("prepare.source", "folder", "has neither images nor class folders.*config.prepare.dir"),
        ("prepare.source", "digits", "doesn't hold colour images"),
    ]
    for name, value, match in cases:
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict({name: value})
        with pytest.raises(UserError, match=match):
            prepare(changed, folder)
        assert not folder.exists(), name
    folder.parent.joinpath("file").write_text("")
    with pytest.raises(UserError, match="file is a file: name a folder"):
        prepare(config, folder.parent / "file")


def test_preparation_resumes_after_a_kill_while_writing_a_file(prepared, copied, config):
    (copied / "latents-00001-of-00003.arrayrecord.json").write_text('{"count":')
    (copied / "latents-00001-of-00003.arrayrecord.tmp").write_bytes(b"half")
    prepare(config, copied)
    assert shard_bytes(copied) == shard_bytes(prepared)
    assert not list(copied.glob("*.tmp"))
    fresh = copied.parent / "fresh"
    fresh.mkdir()
    (fresh / "plan.json.tmp").write_text("{")
    prepare(config, fresh)
    assert shard_bytes(fresh) == shard_bytes(prepared)


def test_latents_with_another_crop_are_refused(copied, config):
    header = json.loads((copied / HEADER).read_text())
    header["plan"]["crop"] = "random"
    (copied / HEADER).write_text(json.dumps(header))
    with pytest.raises(UserError, match="cropped as 'random', not 'adm-centre'"):
        data.open_source(config)

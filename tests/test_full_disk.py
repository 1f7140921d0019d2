"""A disk that is full or read-only: training warns and goes on; commands end with one line."""

import errno
import os
import resource
import types

import numpy as np
import pytest
from conftest import run_entry
from etils import epath
from resuming import small_config
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tp_jax.data.shards import write_shard
from tp_jax.evals.frozenlake import films
from tp_jax.files.atomic import WriteError, replacing, write_bytes, write_json
from tp_jax.files.jsonl import appender
from tp_jax.files.orbax import save_weights
from tp_jax.pictures.grids import save_png
from tp_jax.sampling import draw
from tp_jax.sampling.parts import open_parts
from tp_jax.train import curves, metrics
from tp_jax.train.loop import train

FULL, READ_ONLY, QUOTA = errno.ENOSPC, errno.EROFS, errno.EDQUOT


def disk_error(number, path=None):
    return OSError(number, os.strerror(number), path and str(path))


@pytest.fixture
def full_disk(monkeypatch):
    """A function that makes every write of a file whose name ends so fail, after half of it."""

    def fill(ending, number=FULL):
        write = type(epath.Path(".")).write_bytes

        def fail(path, content):
            if not path.name.removesuffix(".tmp").endswith(ending):
                return write(path, content)
            write(path, content[: len(content) // 2])
            raise disk_error(number)

        monkeypatch.setattr(type(epath.Path(".")), "write_bytes", fail)

    return fill


@pytest.mark.parametrize("number", [FULL, READ_ONLY, QUOTA, errno.EACCES, errno.EFBIG])
@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_json(path, {"a": 1}),
        lambda path: write_bytes(path, b"new"),
        lambda path: save_png(path, np.zeros((8, 8, 3), np.uint8)),
    ],
)
def test_a_file_that_cannot_be_written_keeps_its_content(write, number, full_disk, tmp_path):
    path = epath.Path(tmp_path / "file")
    path.write_text("old")
    full_disk("file", number)
    with pytest.raises(WriteError, match=f"{path} can't be written .{os.strerror(number)}"):
        write(path)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "old"


def test_dev_full_and_a_file_in_place_of_the_folder(tmp_path):
    """Errors that the system itself raises."""
    (tmp_path / "link").symlink_to("/dev/full")
    match = "link can't be written .No space left"
    with pytest.raises(WriteError, match=match), appender(epath.Path(tmp_path / "link")) as add:
        add({"a": 1})
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match="can't be written"):
        write_json(epath.Path(tmp_path / "file" / "new.json"), {})


def test_an_error_of_another_file_is_not_a_write_error(tmp_path):
    with pytest.raises(FileNotFoundError), replacing(epath.Path(tmp_path / "out")) as temporary:
        temporary.write_text("a")
        (tmp_path / "missing").read_text()
    assert not list(tmp_path.iterdir())


def test_training_goes_on_without_sample_grids_and_curves(full_disk, monkeypatch, capsys, tmp_path):
    write, calls = curves.EventFile._write, []

    def full_at_first(file):
        calls.append(0)
        if len(calls) < 3:
            raise disk_error(READ_ONLY)
        write(file)

    monkeypatch.setattr(curves.EventFile, "_write", full_at_first)
    monkeypatch.setattr(metrics, "FLUSH_SECONDS", 0)
    full_disk(".png")
    config = small_config(steps=6)
    config.model.thinking.layers = ()
    config.train.update(samples=2, sample_every=2, log_every=2)
    train(config, epath.Path(tmp_path / "run"))
    stderr = capsys.readouterr().err
    warnings = [line for line in stderr.splitlines() if line.startswith("warning")]
    assert len(warnings) == 2 and "done: 6 train steps" in stderr
    assert any(
        "goes on without sample grids" in line and "00000002.png" in line for line in warnings
    )
    assert any("goes on without curves" in line and "Read-only" in line for line in warnings)
    assert not list((tmp_path / "run" / "samples").iterdir())
    assert (tmp_path / "run" / "checkpoints" / "6").is_dir()
    # What couldn't be written was kept, and was written later.
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    assert [point.step for point in events.Scalars("loss")] == [2, 4, 6]


def test_an_event_file_stays_whole_when_a_write_fails_half_way(monkeypatch, capsys, tmp_path):
    path = tmp_path / "events"
    file = curves.EventFile(str(path))
    file.write(b"first")
    file.flush()
    monkeypatch.setattr(curves.os, "fsync", lambda number: (_ for _ in ()).throw(disk_error(QUOTA)))
    for data in (b"second", b"third"):
        file.write(data)
        file.flush()
    monkeypatch.undo()
    file.write(b"fourth")
    file.flush()
    file.close()
    assert path.read_bytes() == b"firstsecondthirdfourth"
    assert capsys.readouterr().err.count("warning: the run goes on without curves") == 1


def test_a_film_that_cannot_be_written_leaves_no_file(full_disk, tmp_path):
    full_disk(".gif")
    canvas = films.Canvas(cells=3, tile=8)
    frame = np.zeros((24, 24, 3))
    play = types.SimpleNamespace(
        cells=[1],
        outcome="goal",
        place=types.SimpleNamespace(size="3×3", desc=["SFF", "FFF", "FFG"], corner=(0, 0)),
    )
    with pytest.raises(WriteError, match="walk.gif can't be written"):
        films.save_films(
            epath.Path(tmp_path), [play], [films.Film(frame, [frame], [frame])], canvas
        )
    assert {path.name for path in tmp_path.iterdir()} == {"successes.png"}


@pytest.mark.parametrize("ending", ["grid.png", "drawing.json"])
def test_sampling_ends_with_one_line(ending, full_disk, trained, tmp_path):
    full_disk(ending)
    out = tmp_path / ("out" if ending == "grid.png" else "out.npz")
    arguments = [f"--workdir={trained}", f"--out={out}", "--num=1", "--sampler_steps=1"]
    code, _, stderr = run_entry("sample", *arguments)
    lines = [line for line in stderr.splitlines() if line.startswith("error")]
    assert code == 1 and len(lines) == 1 and "Traceback" not in stderr, stderr
    assert f"{ending} can't be written (No space left" in lines[0]
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize(
    ("function", "name"), [("write_array_header_1_0", "npz"), ("write_array", "npy")]
)
def test_a_part_and_the_npz_are_written_whole_or_not_at_all(function, name, monkeypatch, tmp_path):
    parts = open_parts(epath.Path(tmp_path / "out.npz"), {"num": 2})
    parts.add(np.zeros((2, 8, 8, 1), np.uint8))

    def fail(file, *_, **__):
        file.write(b"half")
        raise disk_error(FULL)

    with (
        monkeypatch.context() as patch,
        pytest.raises(WriteError, match=f"{name} can't be written"),
    ):
        patch.setattr(np.lib.format, function, fail)
        parts.join(np.zeros(2))
    kept = {"out.npz.parts", "out.npz.drawing.json", "00000000.npy"}
    assert {path.name for path in tmp_path.rglob("*")} <= kept
    parts._pending = [np.zeros((2, 8, 8, 1), np.uint8)] if name == "npy" else []
    parts.join(np.zeros(2))
    assert np.load(tmp_path / "out.npz")["arr_0"].shape == (2, 8, 8, 1)


def test_an_unexpected_disk_error_of_a_command_is_one_line(monkeypatch, tmp_path):
    def fail(drawing):
        raise disk_error(FULL, "F")

    monkeypatch.setattr(draw, "open_generator", fail)
    code, _, stderr = run_entry("sample", "--workdir=w", f"--out={tmp_path / 'o'}", "--num=1")
    wanted = "error: F: No space left on device: check that there is room, and that you may read"
    assert code == 1 and stderr.startswith(wanted) and len(stderr.splitlines()) == 1


@pytest.fixture
def small_files():
    """Limits the size of files to 4 KiB, which libraries in C++ meet like a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("small_files")
def test_weights_that_can_not_be_written_are_named(tmp_path):
    folder, weights = epath.Path(tmp_path / "out"), np.random.default_rng(0).random(30_000)
    with pytest.raises(WriteError, match="out can't be written .*make room there"):
        save_weights(folder, {"kernel": weights})
    assert not folder.exists()


@pytest.mark.usefixtures("small_files")
def test_a_shard_of_latents_that_can_not_be_written_is_named(tmp_path):
    plan = types.SimpleNamespace(
        autoencoder=types.SimpleNamespace(channels=1, shift=0, scale=1),
        shard_name=lambda shard: f"shard{shard}",
        shard_range=lambda shard: range(50),
        decode=lambda record: (None, np.zeros((1, 2, 1, 1, 1))),
    )
    folder, records = epath.Path(tmp_path), iter([os.urandom(3_000)] * 50)
    bar = types.SimpleNamespace(update=lambda: None)
    with pytest.raises(WriteError, match="shard0 can't be written .*make room there"):
        write_shard(folder, plan, 0, records, bar)
    assert not list(folder.iterdir())

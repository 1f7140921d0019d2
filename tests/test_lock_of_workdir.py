"""Only one run at a time writes to a workdir; a holder that is dead for certain is taken over."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from bad_input_files import config_file
from conftest import tiny_config
from etils import epath
from resuming import small_config, trained_losses

from tp_jax.files.folders import HOLDER
from tp_jax.messages.errors import TrainingError, UserError
from tp_jax.train import loop
from tp_jax.workdir import lock


@pytest.fixture(autouse=True)
def short_times(monkeypatch):
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(lock, "WATCH_SECONDS", 0.3)
    monkeypatch.setattr(lock, "SILENT_SECONDS", 0.6)
    monkeypatch.setattr(lock, "SETTLE_SECONDS", 0.1)


@pytest.fixture
def folder(tmp_path):
    return epath.Path(tmp_path / "place" / "run")


@pytest.fixture(scope="module")
def ended():
    """A process that has ended but still has an entry, and its start."""
    process = subprocess.Popen(["sleep", "100"])
    start = lock._process_start(process.pid)
    process.kill()
    while lock._process_start(process.pid):
        time.sleep(0.01)
    yield process.pid, start
    process.wait()


def write_holder(folder, **changes):
    """Write the file of a holder: by default, of this process."""
    folder.mkdir(parents=True, exist_ok=True)
    holder = dataclasses.replace(lock._this_process(), token="other", **changes)
    (folder / HOLDER).write_bytes(holder.to_bytes())
    return holder


ELSEWHERE = {"machine": "another", "host": "node7"}
LONG_AGO = {"alive": "2020-01-01T00:00:00+00:00"}
IN_FUTURE = {"alive": "2090-01-01T00:00:00+00:00"}


@pytest.mark.parametrize(
    "holder",
    [
        {"pid": 2**22 + 1},
        {"process_start": "1"},
        ELSEWHERE,
        ELSEWHERE | LONG_AGO,
        ELSEWHERE | IN_FUTURE,
        {"machine": ""},
    ],
)
def test_a_dead_holder_is_taken_over(holder, folder, capsys):
    write_holder(folder, **holder)
    with lock.hold(folder, "--workdir=W"):
        assert "token" in json.loads((folder / HOLDER).read_text())
    stderr = capsys.readouterr().err
    assert "--workdir=W is taken over from process " in stderr
    assert ("waiting up to" in stderr) == ("machine" in holder)
    assert not list(folder.iterdir())


def test_a_process_that_has_ended_is_dead(ended, folder):
    write_holder(folder, pid=ended[0], process_start=ended[1])
    with lock.hold(folder, "--workdir=W"):
        pass


INFINITE_PID = (
    b'{"token": "", "host": "", "user": "", "pid": 1e999, "machine": "", "process_start": "", '
    b'"since": "", "alive": "2020-01-01T00:00:00+00:00"}'
)


@pytest.mark.parametrize(
    "content", [b"", b"\x89PNG\xff", b"[1]", b'{"token": 1}', b"[" * 100_000, INFINITE_PID]
)
def test_a_damaged_file_is_taken_over_after_a_while(content, folder, capsys):
    folder.mkdir(parents=True)
    (folder / HOLDER).write_bytes(content)
    with lock.hold(folder, "--workdir=W"):
        pass
    assert "is held by a run whose file can not be read: waiting" in capsys.readouterr().err


def test_a_holder_that_is_a_dangling_link_is_named(folder):
    folder.mkdir(parents=True)
    os.symlink(folder / "nowhere", folder / HOLDER)
    with pytest.raises(UserError, match="is a link to a file that isn't there: remove it"):
        lock.Held(folder, "W").acquire()


def test_a_living_holder_is_named_at_once(folder):
    holder = write_holder(folder, since="2026-01-02T03:04:05+00:00", user="ada", host="node1")
    match = (
        f"--workdir=W is in use by process {os.getpid()} of ada on node1 since "
        f"2026-01-02T03:04:05.*, last sign of life {holder.alive[:10]}.*: stop that run"
    )
    with pytest.raises(UserError, match=match), lock.hold(folder, "--workdir=W"):
        pass
    assert (folder / HOLDER).exists()


def test_a_holder_elsewhere_that_shows_life_is_refused(folder):
    write_holder(folder, **ELSEWHERE | LONG_AGO)
    timer = threading.Timer(0.1, write_holder, [folder], ELSEWHERE)
    timer.start()
    with pytest.raises(UserError, match="in use by .* on node7"), lock.hold(folder, "W"):
        pass


@pytest.mark.parametrize("before", ["nothing", "dead holder", "dead holder and claim"])
@pytest.mark.parametrize("links", [True, False])
def test_of_many_that_start_together_exactly_one_wins(before, links, folder, monkeypatch):
    def no_links(*_):
        raise OSError(lock.errno.ENOTSUP, "no links")

    if not links:
        monkeypatch.setattr(lock.os, "link", no_links)
    write = lock.write_bytes

    def slowly(path, content):
        # So that all find the dead holder before one of them has replaced it.
        time.sleep(0.05)
        write(path, content)

    monkeypatch.setattr(lock, "write_bytes", slowly)
    if before != "nothing":
        dead = write_holder(folder, pid=2**22 + 1)
        if before == "dead holder and claim":
            content = HOLDER.encode() + dead.to_bytes()
            digest = lock.hashlib.sha256(content).hexdigest()[:16]
            (folder / f"{HOLDER}.{digest}").write_bytes(dead.to_bytes())
    won, refused, release = [], [], threading.Event()
    barrier = threading.Barrier(12)

    def start():
        held = lock.Held(folder, "W")
        barrier.wait()
        try:
            held.acquire()
        except UserError as error:
            refused.append(str(error))
        else:
            won.append(0)
            release.wait()
            held.release()

    threads = [threading.Thread(target=start) for _ in range(12)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + 60
    while len(won) + len(refused) < 12 and time.monotonic() < end:
        time.sleep(0.01)
    release.set()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and all("in use by" in message for message in refused)
    assert not folder.exists() or not list(folder.iterdir())


def test_in_a_bucket_the_last_of_two_writers_wins(folder, monkeypatch):
    """Without exclusive creation: the file is there only after it was checked."""
    monkeypatch.setattr(lock, "_in_bucket", lambda path: True)
    folder.mkdir(parents=True)
    results, barrier = [], threading.Barrier(4)

    def start():
        held = lock.Held(folder, "W")
        barrier.wait()
        try:
            held.acquire()
            results.append(held)
        except UserError:
            results.append(None)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [held for held in results if held]
    winner.check()
    winner.release()
    assert not list(folder.iterdir())


def test_a_holder_that_was_taken_over_notices(folder):
    with lock.hold(folder, "--workdir=W") as held:
        held.check()
        write_holder(folder, **ELSEWHERE)
        match = "--workdir=W was taken over by process .* on node7.*writes no checkpoint"
        with pytest.raises(TrainingError, match=match):
            held.check()
        with pytest.raises(TrainingError):
            held.check(read=False)
    assert json.loads((folder / HOLDER).read_text())["host"] == "node7"


def test_the_sign_of_life_is_renewed_and_a_deleted_file_is_written_again(folder):
    with lock.hold(folder, "W") as held:
        first = (folder / HOLDER).read_bytes()
        (folder / HOLDER).unlink()
        held.check()
        time.sleep(1.1)
        assert (folder / HOLDER).read_bytes() != first


def test_training_stops_before_it_saves_when_it_was_taken_over(monkeypatch, folder):
    update = loop._update

    def take_over(checked, program, state, train_step):
        if train_step == 2:
            write_holder(folder, **ELSEWHERE)
        return update(checked, program, state, train_step)

    monkeypatch.setattr(lock, "BEAT_SECONDS", 100)
    monkeypatch.setattr(loop, "_update", take_over)
    config = small_config(every_steps=3)
    config.model.thinking.layers = ()
    with pytest.raises(TrainingError, match="was taken over by .* on node7"):
        trained_losses(config, folder)
    assert not list((folder / "checkpoints").iterdir())


def test_a_second_run_is_refused_before_it_reads_data(folder, refused, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "check", None)
    write_holder(folder)
    match = f"--workdir={folder} is in use by process {os.getpid()}"
    refused("main", f"--config={config_file(tmp_path)}", f"--workdir={folder}", match=match)
    write_holder(folder, **{"pid": 2**22 + 1})
    monkeypatch.setattr(loop, "check", lambda *_: (_ for _ in ()).throw(UserError("checked")))
    with pytest.raises(UserError, match="checked"):
        loop.train(tiny_config(), folder)
    # A folder with nothing but a dead holder's file counts as new.
    assert not list(folder.iterdir())


def test_a_refused_run_leaves_no_new_folder(folder, monkeypatch):
    monkeypatch.setattr(loop, "check", lambda *_: (_ for _ in ()).throw(UserError("wrong")))
    with pytest.raises(UserError, match="wrong"):
        loop.train(tiny_config(), folder / "a" / "b")
    assert not folder.parent.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_gives_the_folder_free_and_a_kill_is_taken_over_at_once(number, folder):
    lines = (
        "import sys, time; from etils import epath; from tp_jax.cli import signals; "
        "from tp_jax.workdir import lock\n"
        "with signals.handled(), lock.hold(epath.Path(sys.argv[1]), 'W'):\n"
        "    print(1, flush=True)\n    time.sleep(100)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", lines, folder], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout and process.stdout.readline() == b"1\n"
    with pytest.raises(UserError, match=f"in use by process {process.pid}"):
        lock.Held(folder, "W").acquire()
    process.send_signal(number)
    process.wait()
    process.stdout.close()
    assert (folder / HOLDER).exists() == (number == signal.SIGKILL)
    with lock.hold(folder, "W"):
        pass

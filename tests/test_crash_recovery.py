"""Crashes, kills and damaged checkpoints cost only the steps since the last good checkpoint."""

import contextlib
import io
import os
import re
import shutil
import signal
import time

import numpy as np
import pytest
from etils import epath
from resuming import (
    STEPS,
    USE_FAKE_WRITER,
    RestartableRun,
    assert_identical,
    read_checkpoint,
    saved_steps,
    small_config,
    trained_losses,
)

from tp_jax.cli.signals import Interrupted
from tp_jax.messages.errors import UserError
from tp_jax.sampling.loaded import load
from tp_jax.train import loop, metrics
from tp_jax.train.liveness import Watchdog
from tp_jax.workdir.integrity import file_checksums, find_damage


@pytest.fixture(scope="module")
def half_way(tmp_path_factory):
    """A workdir that was stopped at step 9, with checkpoints 4 and 8. Tests use a copy."""
    workdir = tmp_path_factory.mktemp("half_way") / "run"
    trained_losses(small_config(every_steps=4), workdir, stop_at=10)
    assert saved_steps(workdir) == {4, 8}
    return workdir


@pytest.fixture
def workdir(half_way, tmp_path):
    return shutil.copytree(half_way, tmp_path / "run")


def flip_random_bit(path, rng):
    content = bytearray(path.read_bytes())
    content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
    path.write_bytes(bytes(content))


def truncate(path, rng):
    path.write_bytes(path.read_bytes()[: rng.integers(path.stat().st_size)])


def delete(path, rng):
    path.unlink()


def files_of(workdir, step):
    files = (workdir / "checkpoints" / str(step)).rglob("*")
    return sorted(path for path in files if path.is_file() and path.stat().st_size)


def test_any_damage_of_any_file_is_found(workdir):
    rng, folder = np.random.default_rng(0), epath.Path(workdir / "checkpoints" / "8")
    assert find_damage(epath.Path(workdir), 8, folder) is None
    for path in files_of(workdir, 8):
        content = path.read_bytes()
        for damage in (flip_random_bit, truncate, delete):
            damage(path, rng)
            found = find_damage(epath.Path(workdir), 8, folder)
            assert found and path.name in found
            path.write_bytes(content)
    (workdir / "checkpoints" / "8" / "more").write_text("")
    assert find_damage(epath.Path(workdir), 8, folder) == "more isn't part of the checkpoint"


def test_only_existing_checkpoints_have_checksums(workdir):
    assert {path.stem for path in (workdir / "checksums").iterdir()} == {"4", "8"}
    found = file_checksums(epath.Path(workdir / "checkpoints" / "8"))
    assert set(found) == {
        str(path.relative_to(workdir / "checkpoints" / "8"))
        for path in (workdir / "checkpoints" / "8").rglob("*")
        if path.is_file()
    }


def test_training_resumes_on_another_mesh(workdir, uninterrupted):
    config = small_config(every_steps=4)
    config.mesh.update(data=1, fsdp=2, expert=2)
    config.model.thinking.dispatch = "expert_parallel"
    losses = trained_losses(config, workdir)
    assert list(losses) == list(range(9, STEPS + 1))
    for step, loss in losses.items():
        np.testing.assert_allclose(loss, uninterrupted[1][step], rtol=1e-5)
    data = [read_checkpoint(folder, STEPS)[1] for folder in (workdir, uninterrupted[0])]
    assert data[0] == data[1]


@pytest.mark.parametrize("damage", [flip_random_bit, truncate, delete])
def test_damaged_checkpoint_is_moved_away_and_the_previous_one_used(
    damage,
    workdir,
    uninterrupted,
    capsys,
):
    damaged = max(files_of(workdir, 8), key=lambda path: path.stat().st_size)
    damage(damaged, np.random.default_rng(1))
    losses = trained_losses(small_config(every_steps=4), workdir)
    assert list(losses) == list(range(5, STEPS + 1))
    assert losses.items() <= uninterrupted[1].items()
    stderr = capsys.readouterr().err
    assert re.search(rf"checkpoint 8 is damaged \(.*{damaged.name}.*moved to .*/damaged", stderr)
    assert (workdir / "damaged" / "8_0").is_dir()
    assert_identical(
        read_checkpoint(workdir, STEPS)[0], read_checkpoint(uninterrupted[0], STEPS)[0]
    )


def test_unreadable_checkpoint_without_checksums_is_moved_away(workdir, uninterrupted):
    # As if the run was killed after it saved the checkpoint and before it wrote the checksums.
    (workdir / "checksums" / "8.json").unlink()
    shutil.rmtree(workdir / "checkpoints" / "8" / "ema")
    losses = trained_losses(small_config(every_steps=4), workdir)
    assert next(iter(losses)) == 5 and losses.items() <= uninterrupted[1].items()
    assert (workdir / "damaged" / "8_0").is_dir()


def test_training_does_not_restart_when_all_checkpoints_are_damaged(workdir):
    for step in (4, 8):
        delete(files_of(workdir, step)[0], None)
    with pytest.raises(UserError, match="all checkpoints in .* moved to .*start in a new workdir"):
        trained_losses(small_config(every_steps=4), workdir)
    assert sorted(path.name for path in (workdir / "damaged").iterdir()) == ["4_1", "8_0"]


def test_sampling_from_a_damaged_checkpoint_is_refused(workdir):
    flip_random_bit(files_of(workdir, 8)[0], np.random.default_rng(0))
    with pytest.raises(UserError, match="8 in .* is damaged .*--checkpoint=N, from 4, 8"):
        load(epath.Path(workdir))
    assert load(epath.Path(workdir), 4).train_step == 4


def test_sigterm_saves_a_checkpoint_and_exits_with_code_0(uninterrupted, tmp_path):
    lines = f"{USE_FAKE_WRITER}\nresuming.slow_down(0.3)"
    run = RestartableRun(tmp_path, lines=lines)
    process = run.start("--config.checkpoint.every_steps=50")
    while f" 3/{STEPS} " not in run.log():
        assert process.poll() is None, run.log()
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0, run.log()
    stderr = run.log()
    step = int(re.search(r"stopped by SIGTERM after step (\d+), which is saved", stderr)[1])
    assert 3 <= step < STEPS and saved_steps(run.workdir) == {step}
    assert "done:" not in stderr

    code, stderr = run.finish()
    assert code == 0 and "done:" in stderr
    assert f"resuming from the checkpoint of train step {step}" in stderr
    assert_identical(
        read_checkpoint(run.workdir, STEPS)[0], read_checkpoint(uninterrupted[0], STEPS)[0]
    )


@pytest.fixture
def not_ignored():
    """Don't ignore signals, as tests in the background or under nohup do."""
    before = {n: signal.signal(n, signal.SIG_DFL) for n in (signal.SIGINT, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("not_ignored")
@pytest.mark.parametrize("name", ["SIGINT", "SIGHUP"])
def test_other_signals_save_a_checkpoint_too(name, tmp_path, uninterrupted, monkeypatch, capfd):
    number, add = signal.Signals[name], metrics.Window.add

    def interrupt(window, step, values):
        add(window, step, values)
        if step == 4:
            os.kill(os.getpid(), number)
            time.sleep(0.3)  # until the thread has received it

    with monkeypatch.context() as patch:
        patch.setattr(metrics.Window, "add", interrupt)
        with pytest.raises(Interrupted) as interrupted:
            trained_losses(small_config(every_steps=50), tmp_path / "run")
    assert interrupted.value.number == number
    assert saved_steps(tmp_path / "run") == {4}
    assert f"stopped by {name} after step 4, which is saved: run the same" in capfd.readouterr().err
    losses = trained_losses(small_config(every_steps=50), tmp_path / "run")
    assert list(losses) == list(range(5, STEPS + 1)) and losses.items() <= uninterrupted[1].items()


@pytest.mark.usefixtures("not_ignored")
def test_a_signal_ends_an_evaluation_and_saves(tmp_path, monkeypatch):
    class Long:
        def due(self, train_step):
            return train_step == 3

        def run(self, train_step, params):
            os.kill(os.getpid(), signal.SIGINT)
            for _ in range(6_000):
                time.sleep(0.01)

    monkeypatch.setattr(loop, "_actions", lambda checked, writer: [Long(), Long()])
    with pytest.raises(Interrupted):
        trained_losses(small_config(every_steps=50), tmp_path / "run")
    assert saved_steps(tmp_path / "run") == {4}


@pytest.mark.slow
def test_full_disk_ends_the_run_and_keeps_the_last_checkpoint(
    uninterrupted,
    tmp_path,
):
    # The log goes through a pipe: the limit on file sizes would cut a log file.
    lines = f"{USE_FAKE_WRITER}\nresuming.fill_disk(step=12)"
    run = RestartableRun(tmp_path, lines=lines)
    code, stderr = run.finish("--config.checkpoint.every_steps=6", through_pipe=True)
    assert code == 1, stderr
    # Orbax's threads print more lines, but not as a log with tracebacks.
    assert "ERROR:absl" not in stderr, stderr
    lines = [line for line in stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and "tp_jax/" not in stderr.partition("error:")[2], stderr
    assert re.search(r"a checkpoint can't be written.*kept: 6\. Free disk space", lines[0])
    assert 6 in saved_steps(run.workdir)

    losses = trained_losses(small_config(every_steps=6), run.workdir)
    assert list(losses) == list(range(7, STEPS + 1))
    assert_identical(
        read_checkpoint(run.workdir, STEPS)[0], read_checkpoint(uninterrupted[0], STEPS)[0]
    )


LONG = 60  # steps of the run that is interrupted at random
CRASHES = ("TERM", "KILL", "mid-save", "full disk", "truncate", "flip")


@pytest.mark.slow
def test_run_survives_random_crashes(tmp_path):
    """Each kind of crash happens twice, in random order and at random times.

    TP_JAX_DEATHS sets how often each happens, and TP_JAX_DEATHS_SEED their order and times.
    """
    rng = np.random.default_rng(int(os.environ.get("TP_JAX_DEATHS_SEED", 0)))
    each = int(os.environ.get("TP_JAX_DEATHS", 2))
    trained_losses(small_config(steps=LONG, every_steps=LONG), tmp_path / "uninterrupted")
    slow = f"{USE_FAKE_WRITER}\nresuming.slow_down(0.05)"
    full = f"{USE_FAKE_WRITER}\nresuming.fill_disk(step={{}})"
    run = RestartableRun(tmp_path, steps=LONG, lines=slow)
    for crash in rng.permutation(each * CRASHES):
        set_back(run.workdir)
        lines = full.format(int(rng.integers(2, 5))) if crash == "full disk" else slow
        run.write_config(LONG, lines)
        process = run.start("--config.checkpoint.keep=4")
        if crash == "full disk":
            assert process.wait(timeout=120) == 1, run.log()
        elif crash == "TERM":
            wait_until(process, lambda: re.search(rf"\d/{LONG} ", run.log()))
            time.sleep(rng.uniform(0, 0.3))
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=120) == 0, run.log()
        else:
            wait_until(process, lambda: "compiling" in run.log())
            if crash == "mid-save":
                wait_until(process, run.unfinished_checkpoint)
            time.sleep(rng.uniform(0, 0.02 if crash == "mid-save" else 1.5))
            process.kill()
            process.wait()
        kept = sorted(saved_steps(run.workdir))
        if crash in ("truncate", "flip") and len(kept) > 1:
            files = files_of(run.workdir, kept[-1])
            damage = truncate if crash == "truncate" else flip_random_bit
            damage(files[rng.integers(len(files))], rng)

    run.write_config(LONG, slow)
    code, stderr = run.finish("--config.checkpoint.keep=4")
    assert code == 0 and "done:" in stderr, stderr
    found, found_data = read_checkpoint(run.workdir, LONG)
    wanted, wanted_data = read_checkpoint(tmp_path / "uninterrupted", LONG)
    assert_identical(found, wanted)
    assert found_data == wanted_data
    moved = list(run.workdir.glob("damaged/*"))
    assert moved
    print(f"\n{len(moved)} checkpoints were moved to damaged")


def set_back(workdir):
    """Delete the newest checkpoints of a run that is nearly done, so that it can crash again."""
    kept = sorted(saved_steps(workdir))
    if kept and kept[-1] > LONG - 20:
        for step in kept[2:]:
            shutil.rmtree(workdir / "checkpoints" / str(step))


def wait_until(process, event):
    deadline = time.monotonic() + 120
    while not event() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_watchdog_reports_a_hang_and_nothing_else(capfd):
    with Watchdog(0.4) as watchdog:
        for step in range(8):
            watchdog.beat(step)
            time.sleep(0.1)
        with watchdog.paused():
            time.sleep(0.8)
        assert "warning" not in capfd.readouterr().err
        time.sleep(0.8)
    stderr = capfd.readouterr().err
    assert re.search(r"process 0 has run no train step for \d+ s; the last was step 7", stderr)
    assert "test_watchdog_reports" in stderr
    with contextlib.redirect_stderr(io.StringIO()), Watchdog(0):
        pass

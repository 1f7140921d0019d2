"""Ctrl-C, a closed terminal and SIGTERM end every command in one line; a second Ctrl-C at once."""

import os
import pathlib
import pty
import signal
import subprocess
import sys
import time

import pytest

from tp_jax.cli import signals

ROOT = pathlib.Path(__file__).parents[1]
LINE = "interrupted: run the same command to go on\n"
# The tests themselves may run with signals ignored, as under nohup.
DEFAULTS = """
import os, signal, sys
for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
    signal.signal(number, signal.SIG_DFL)
"""
# Prints a line when it waits. Its first argument is a mode, its second a file.
PROGRAM = f"""{DEFAULTS}
import fcntl, multiprocessing, pathlib, termios, time
from tp_jax.cli import signals
if sys.argv[1] == "ignoring":
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
mode, file = sys.argv[1], pathlib.Path(sys.argv[2])
def wait():
    print("ready", file=sys.stderr, flush=True)
    time.sleep(60)
if mode == "program":
    try:
        with signals.received_by(lambda number: signals.print_line(f"received {{number}}")):
            wait()
    except KeyboardInterrupt as error:
        print(repr(error), file=sys.stderr)
        # The handlers are those of before, which end the process.
        signal.raise_signal(signal.SIGINT)
with signals.handled():
    if mode == "terminal":
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # It becomes the terminal of this process.
    if mode == "library":
        signal.set_wakeup_fd(-1)
    if mode == "received":
        with signals.received_by(lambda number: signals.print_line(f"received {{number}}")):
            wait()
    if mode == "child":
        # Starting the tracker of resources must not unblock the signals.
        signals.before_workers()
        context = multiprocessing.get_context("spawn")
        context.Process(target=time.sleep, args=(60,), daemon=True).start()
        print(multiprocessing.active_children()[0].pid, flush=True)
    if mode == "raising":
        try:
            with signals.received_by(lambda number: None), signals.raising():
                print("ready", file=sys.stderr, flush=True)
                while True:
                    time.sleep(0.01)
        except signals.Interrupted as error:
            sys.exit(100 + error.number)
    with signals.before_end(lambda: file.write_text("kept")):
        wait()
"""


@pytest.fixture
def start(tmp_path):
    """A function that starts the program in a process group and waits until it is ready."""
    running = []

    def start(mode):
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, mode, tmp_path / "file"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        running.append(process)
        assert process.stderr.readline() == "ready\n" or process.poll()
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


def ended(process, code):
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == code, errors
    return errors


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGHUP", 129), ("SIGTERM", 143)])
def test_a_signal_ends_the_command_after_it_has_written_what_it_keeps(name, code, start, tmp_path):
    process = start("plain")
    os.killpg(process.pid, signal.Signals[name])
    assert ended(process, code) == LINE
    assert (tmp_path / "file").read_text() == "kept"


def test_a_closed_terminal_ends_the_command(tmp_path):
    terminal, side = pty.openpty()
    command = [sys.executable, "-c", PROGRAM, "terminal", tmp_path / "file"]
    process = subprocess.Popen(command, stdin=side, stderr=side, start_new_session=True)
    os.close(side)
    assert os.read(terminal, 100).startswith(b"ready")
    os.close(terminal)
    assert process.wait(timeout=60) == 129
    assert (tmp_path / "file").read_text() == "kept"


TALKER = f"""{DEFAULTS}
import contextlib, time
from tp_jax.cli import signals
from tp_jax.messages import progress
from tp_jax.messages.progress import progress_bar, say
progress._is_first_process = lambda: True
ended = []
with signals.handled(), signals.received_by(ended.append), progress_bar(10**6, "steps") as bar:
    os.write(1, b"ready")
    while not ended:
        bar.update()
        say("a line")
        time.sleep(0.001)
    time.sleep(0.1)
    bar.refresh()
    say("saved")
with open(sys.argv[1], "w") as file:
    file.write("saved")
"""


@pytest.mark.parametrize("output", ["terminal", "pipe"])
def test_work_ends_well_when_nobody_reads_its_messages_any_more(output, tmp_path):
    end, side = pty.openpty() if output == "terminal" else os.pipe()
    command = [sys.executable, "-c", TALKER, tmp_path / "file"]
    process = subprocess.Popen(command, stdout=side, stderr=side, start_new_session=True)
    os.close(side)
    try:
        while b"ready" not in os.read(end, 5_000):
            pass
        os.close(end)
        time.sleep(0.2)
        process.send_signal(signal.SIGHUP if output == "terminal" else signal.SIGINT)
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
    assert (tmp_path / "file").read_text() == "saved"


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_libraries_may_replace_how_python_wakes_up(name, code, start):
    process = start("library")
    process.send_signal(signal.Signals[name])
    assert ended(process, code) == LINE


def test_a_signal_that_was_ignored_stays_ignored(start):
    process = start("ignoring")
    process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert ended(process, 130) == LINE


def test_only_a_second_ctrl_c_ends_at_once(start):
    process = start("received")
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGHUP):
        process.send_signal(number)
        assert process.stderr.readline() == f"received {number}\n"
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert ended(process, 130) == ""


def test_a_ctrl_c_that_a_launcher_passes_on_is_not_a_second_one(start):
    process = start("received")
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == "received 2\n"
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None


def test_long_actions_are_ended_by_an_exception(start):
    process = start("raising")
    process.send_signal(signal.SIGHUP)
    ended(process, 101)


def test_a_second_ctrl_c_interrupts_other_programs_which_keep_their_handlers(start):
    process = start("program")
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == "received 2\n"
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    assert ended(process, -signal.SIGINT) == "Interrupted('SIGINT')\n"


# The arguments of a command that would work for a while.
COMMANDS = {
    "main": ["--config=configs/quickstart.py"],
    "sample": ["--out=x"],
    "analyze": [],
    "evaluate": ["--samples=x", "--inception=x"],
    "prepare": ["--config=configs/imagenet256.py"],
    "convert": ["--kind=dit", "--source=x", "--out=x"],
    "bench": ["--what=prepare"],
    "aot": ["--config=configs/quickstart.py", "--topology=v5e:4x4"],
}


def test_signals_are_handled_before_the_imports_of_a_command():
    # While Python looks for the module of python -m, this is the name of the program.
    code = "import signal, sys; sys.argv[0] = '-m'; import tp_jax; print(signal.getsignal(15))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "_in_main_thread" not in done.stdout, done.stderr
    # It isn't the name of a module of the package here, as it is for python -m tp_jax.sample.
    code = code.replace("import tp_jax", "sys.orig_argv.append('tp_jax.sample'); import tp_jax")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "_in_main_thread" in done.stdout, done.stderr


@pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="reads /proc")
@pytest.mark.parametrize(
    ("entry", "jax"), [*((entry, False) for entry in COMMANDS), ("sample", True)]
)
def test_ctrl_c_ends_every_command_while_it_starts(entry, jax, tmp_path):
    command = [
        sys.executable,
        "-c",
        f"{DEFAULTS}os.execv(sys.executable, sys.argv[1:])",
        sys.executable,
    ]
    command += ["-m", f"tp_jax.{entry}", *COMMANDS[entry], f"--workdir={tmp_path}"]
    process = subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    folder = pathlib.Path(f"/proc/{process.pid}")
    # Python itself handles SIGINT from the beginning, but SIGTERM only if it is told to.
    handled = 1 << (signal.SIGTERM - 1)

    def handles_sigterm():
        lines = dict(line.split(":\t") for line in (folder / "status").read_text().splitlines())
        return int(lines["SigCgt"], 16) & handled

    deadline = time.monotonic() + 60
    while not (handles_sigterm() and (not jax or "jaxlib" in (folder / "maps").read_text())):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    assert ended(process, 130) == LINE


@pytest.mark.parametrize("name", ["SIGINT", "SIGHUP"])
def test_workers_leave_the_end_to_their_parent(name, start):
    process = start("child")
    worker = int(process.stdout.readline())
    os.kill(worker, signal.Signals[name])
    time.sleep(0.5)
    # A worker that has ended would be a zombie, whose name ps marks so.
    name_of = ["ps", "-o", "args=", "-p", str(worker)]
    assert "defunct" not in subprocess.run(name_of, capture_output=True, text=True).stdout
    process.send_signal(signal.SIGINT)
    assert ended(process, 130) == LINE


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_main_thread_may_see_a_signal_before_the_thread_that_receives_it(number):
    refused = pytest.raises(signals.Interrupted)
    with signals.handled(in_command=False), refused as found, signals.raising():
        signals._current._in_main_thread(number, None)
    assert found.value.number == number

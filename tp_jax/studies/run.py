"""Run the cells of a study as subprocesses; any number of processes may share its folder.

What is done is read from the folder: a run that has reached its last train step, and the scores of
its suites. So a cell that was killed goes on where it was, and nothing is done twice. A process
that runs a cell holds the cell's folder, see `workdir.lock`, and loses it when it dies.
"""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import jax
from etils import epath

from tp_jax.cli import signals
from tp_jax.files.atomic import write_json
from tp_jax.messages.errors import TrainingError, UserError
from tp_jax.messages.progress import progress_bar, say
from tp_jax.studies.folder import LOG, RECORD, read_record, write_study
from tp_jax.studies.plan import Cell, Plan, Request, make_plan
from tp_jax.studies.results import write_results
from tp_jax.workdir.lock import hold

# How often a process looks again for a free cell while others run the rest.
WAIT_SECONDS = 5.0
# How long a command may take to save its work when the study is interrupted.
SAVE_SECONDS = 120.0
PYTHON = (sys.executable, "-m")


def run_study(request: Request, python: Sequence[str] = PYTHON) -> None:
    """Run the cells of a study that nobody has run, and write its results.

    Args:
      request: the flags.
      python: the command before the name of a module.

    Raises:
      UserError: the request is wrong, or the folder holds another study.
      TrainingError: cells failed. The others have run, and the results are written.
    """
    if "://" in str(request.out):
        raise UserError(f"--out={request.out}: a study needs a local folder, for its logs")
    # This process only starts others, which need the accelerator for themselves.
    jax.config.update("jax_platforms", "cpu")
    plan = make_plan(request)
    for name, reason in plan.study.left_out.items():
        say(f"{name} is left out: {reason}")
    with held_alone(request.out):
        write_study(plan)
    runner = Runner(plan, python)
    with signals.before_end(runner.stop):
        runner.run()
    with held_alone(request.out):
        failed = write_results(plan, runner.problem_of)
    if failed:
        raise TrainingError(
            f"{len(failed)} of {len(plan.cells)} cells have no scores, the first is {failed[0]}; "
            f"{request.out / request.study}.md says why: run the same command to try them again"
        )


@contextlib.contextmanager
def held_alone(out: epath.Path) -> Iterator[None]:
    """Hold the folder of a study in the block, once no other process of the study does."""
    with contextlib.ExitStack() as stack:
        while True:
            with contextlib.suppress(UserError):
                stack.enter_context(hold(out, f"--out={out}"))
                break
            time.sleep(0.2)
        yield


class Runner:
    """Runs cells on threads, each of which waits for one subprocess at a time."""

    def __init__(self, plan: Plan, python: Sequence[str]) -> None:
        """Prepare to run the cells of a plan.

        Args:
          plan: the study.
          python: the command before the name of a module.
        """
        self._plan, self._python = plan, tuple(python)
        self._lock, self._started = threading.Lock(), time.time()
        # Cells that this process holds; the command that runs, and its name.
        self._running: dict[Cell, tuple[subprocess.Popen[bytes], str] | None] = {}
        self._messages: list[str] = []
        self._stopped = threading.Event()
        self._errors: list[BaseException] = []

    def run(self) -> None:
        """Run cells until all are done or have failed, here or in another process."""
        threads = [
            threading.Thread(target=self._work, daemon=True)
            for _ in range(min(self._plan.request.jobs, len(self._plan.cells)))
        ]
        with progress_bar(len(self._plan.cells), self._plan.request.study, "cell") as bar:
            bar.initial = bar.n = self._finished()
            for thread in threads:
                thread.start()
            shown, since = (-1, ""), time.monotonic()
            while any(thread.is_alive() for thread in threads) or self._messages:
                for thread in threads:
                    thread.join(1.0 / len(threads))
                while self._messages:
                    bar.clear()
                    say(self._messages.pop(0))
                bar.n, doing = self._finished(), self._doing()
                # A log has a line only where something changed, or every minute.
                if (bar.n, doing) != shown or time.monotonic() > since + 60:
                    bar.set_postfix_str(doing)
                    shown, since = (bar.n, doing), time.monotonic()
        if self._errors:
            raise self._errors[0]

    def stop(self) -> None:
        """Let the commands save their work and end; start no others."""
        self._stopped.set()
        with self._lock:
            running = [found[0] for found in self._running.values() if found]
        for process in running:
            process.terminate()
        end = time.monotonic() + SAVE_SECONDS
        for process in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(end - time.monotonic(), 0.1))

    def problem_of(self, cell: Cell) -> str | None:
        """Return why a cell has no scores after this start; None if nothing is known."""
        if cell.done():
            return None
        for name in cell.needs:
            needed = self._plan.cell(name, cell.seed)
            if self.problem_of(needed):
                return f"it needs {needed}, which failed"
        failed = read_record(cell.folder).get("failed")
        return failed["text"] if failed and failed["time"] >= self._started else None

    def _finished(self) -> int:
        return sum(cell.done() or self.problem_of(cell) is not None for cell in self._plan.cells)

    def _doing(self) -> str:
        with self._lock:
            return "; ".join(f"{c}: {found[1]}" for c, found in self._running.items() if found)

    def _work(self) -> None:
        try:
            while not self._stopped.is_set():
                with contextlib.ExitStack() as stack:
                    cell = self._take(stack)
                    if cell is not None:
                        self._run(cell)
                        continue
                if self._finished() == len(self._plan.cells):
                    return
                self._stopped.wait(WAIT_SECONDS)
        except BaseException as error:
            self._errors.append(error)

    def _take(self, stack: contextlib.ExitStack) -> Cell | None:
        """Hold a cell that can run until the stack closes; return None if there is none now."""
        for cell in self._plan.cells:
            with self._lock:
                if cell in self._running or not self._can_run(cell):
                    continue
                self._running[cell] = None
            stack.callback(self._forget, cell)
            with contextlib.suppress(UserError):  # Another process has it.
                stack.enter_context(hold(cell.folder, f"cell {cell}"))
                if cell.trains and cell.run.exists():
                    # If the process that started the training was killed, it still goes on.
                    with hold(cell.run, f"cell {cell}"):
                        pass
                # Another process may have run it before it was held here.
                if self._can_run(cell):
                    return cell
            stack.close()
        return None

    def _can_run(self, cell: Cell) -> bool:
        if cell.done() or self.problem_of(cell):
            return False
        return all(self._plan.cell(name, cell.seed).done() for name in cell.needs)

    def _forget(self, cell: Cell) -> None:
        with self._lock:
            del self._running[cell]

    def _run(self, cell: Cell) -> None:
        """Train and evaluate a cell, and record how long it took or why it failed."""
        steps: list[tuple[str, tuple[str, ...], Callable[[], bool]]] = []
        if cell.trains:
            steps.append(("train", cell.trains, cell.trained))
        for suite, command in cell.evaluates.items():
            steps.append((suite, command, lambda suite=suite: cell.evaluated(suite)))
        for name, command, done in steps:
            if done():
                continue
            code = self._call(cell, name, command)
            if self._stopped.is_set():
                return
            if not done():
                self._fail(cell, command[0], code)
                # Another suite may still be able to score the run.
                if name == "train":
                    return

    def _call(self, cell: Cell, name: str, command: Sequence[str]) -> int:
        """Run a command, add its time to the record, and return its exit code."""
        cell.folder.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        with open(cell.folder / LOG, "ab") as log:
            process = subprocess.Popen(
                [*self._python, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C reaches this process only, which then ends the command with SIGTERM.
                start_new_session=True,
                env=os.environ,
            )
            with self._lock:
                self._running[cell] = process, name
            if self._stopped.is_set():
                process.terminate()
            code = process.wait()
        record = read_record(cell.folder)
        seconds = record.setdefault("seconds", {})
        seconds[name] = seconds.get(name, 0.0) + time.monotonic() - began
        write_json(cell.folder / RECORD, record)
        return code

    def _fail(self, cell: Cell, module: str, code: int) -> None:
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        if code == 0:
            how = "ended before the last train step"
        text = f"{module} {how}; see {cell.folder / LOG}"
        self._messages.append(f"{cell} failed: {text}")
        failed = {"text": text, "exit_code": code, "time": time.time()}
        write_json(cell.folder / RECORD, read_record(cell.folder) | {"failed": failed})

"""The training loop: check the config, build the train step, restore, then loop over batches."""

import contextlib
import signal
from collections.abc import Collection
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from tp_jax.cli.signals import Interrupted
from tp_jax.messages.progress import say
from tp_jax.models.flops import train_step_flops
from tp_jax.models.parameters import Params
from tp_jax.parallel.sharding import batch_sharding
from tp_jax.train import metrics
from tp_jax.train.checkpoint import Checkpoints
from tp_jax.train.liveness import Preemption, Watchdog
from tp_jax.train.optimizer import make_schedule
from tp_jax.train.periodic import EmaAction, Evaluation, Every, Log, SampleGrid, Save, Validate
from tp_jax.train.setup import Checked, Program, Start, build, check, restore
from tp_jax.train.state import TrainState, to_device_memory
from tp_jax.train.summary import markdown, start_lines
from tp_jax.train.trackers import open_writers
from tp_jax.workdir.changes import write_run
from tp_jax.workdir.lock import Held, hold
from tp_jax.workdir.record import is_run, write_workdir


def train(
    config: ConfigDict,
    workdir: epath.Path,
    *,
    allow_unchecked: bool = False,
    allow_change: Collection[str] = (),
) -> None:
    """Train until `config.train.steps`, from the newest checkpoint in the workdir if there is one.

    Args:
      config: the config of the run, from `tp_jax.config.default`.
      workdir: the folder for checkpoints, metrics and samples; created if it doesn't exist.
      allow_unchecked: use checkpoints, also of the base, whose checksums are missing or damaged.
      allow_change: fields and sections of the config, and facts of `workdir.changes`, that may
        change though this makes another run.

    Raises:
      UserError: the config, the data, the base or the workdir is wrong. Nothing has been written.
      TrainingError: a loss or gradient isn't finite, or a checkpoint can't be written. Earlier
        checkpoints are kept. Or another run has taken over the workdir.
      Interrupted: SIGINT or SIGHUP was received. A checkpoint is saved.
    """
    is_run(workdir)
    with hold(workdir, f"--workdir={workdir}") as held:
        checked = check(config, workdir, allow_change)
        _train(checked, workdir, held, allow_unchecked)


def _train(checked: Checked, workdir: epath.Path, held: Held, allow_unchecked: bool) -> None:
    config, model = checked.config, checked.model
    program = build(config, model.model, model.built.objective, model.mesh)
    start = restore(checked, program, allow_unchecked=allow_unchecked)
    if start is None:
        return
    write_workdir(workdir, config, checked.text_space)
    if jax.process_index() == 0:
        write_run(workdir, checked.facts, checked.changes)
    # The config was written first: a folder with checkpoints but no config isn't accepted as a
    # workdir when a killed run resumes.
    checkpoints = start.checkpoints or Checkpoints(workdir, config.checkpoint)
    window = _window(checked, start)
    with contextlib.closing(open_writers(config, workdir)) as writer:
        writer.write_texts(start.first, {"config": markdown(config)})
        for text in start_lines(checked, program, start.first):
            say(text)
        last, received = _loop(checked, program, start, checkpoints, window, writer, held)
    checked.iterator.close()
    if received is not None or last < config.train.steps:
        # With several processes, only one may have received the signal.
        number = received or signal.SIGTERM
        say(
            f"stopped by {signal.Signals(number).name} after step {last}, which is saved: run the "
            f"same command to resume"
        )
        # Launchers take exit code 0 and a log without "done:" as a preemption.
        if number != signal.SIGTERM:
            raise Interrupted(number)
    else:
        seconds = metrics.duration(window.seconds)
        compiling = metrics.duration(window.compile_seconds)
        say(
            f"done: {last} train steps in {seconds}, of which {compiling} were for compilation; "
            f"see {workdir}"
        )


def _window(checked: Checked, start: Start) -> metrics.Window:
    fields = checked.config.train
    flops = train_step_flops(
        checked.model.built.model,
        fields.batch_size,
        fields.trainable,
        deep_supervision=fields.deep_supervision > 0,
    )
    return metrics.Window(flops, fields.batch_size, start.seconds)


def _loop(
    checked: Checked,
    program: Program,
    start: Start,
    checkpoints: Checkpoints,
    window: metrics.Window,
    writer: metrics.Writer,
    held: Held,
) -> tuple[int, int | None]:
    """Run until the last step or until a signal arrives.

    Returns:
      The last train step that was run, and the number of the signal that this process received.
    """
    config, steps, train_step = checked.config, checked.config.train.steps, start.first
    schedule = make_schedule(config.optimizer, steps)
    log = Log(Every(config.train.log_every, steps), window, schedule, writer)
    saved_every = Every(config.checkpoint.every_steps, steps)
    save = Save(saved_every, window, checkpoints, checked.iterator)
    actions, state = _actions(checked, writer), start.take_state()
    watchdog = Watchdog(config.train.hang_seconds)
    # Signals are handled until the last save, which the exit of the checkpoints waits for.
    with Preemption() as preemption, checkpoints, watchdog:
        for train_step in range(start.first + 1, steps + 1):
            state, step_metrics = _update(checked, program, state, train_step)
            window.add(train_step, step_metrics)
            watchdog.beat(train_step)
            if train_step == start.first + 1:
                window.leave_out_compilation()
                say(metrics.header())
            if log.due(train_step):
                log.run(train_step)
            stopping = preemption.should_stop(train_step) and train_step < steps
            held.check(read=False)
            if save.due(train_step) or stopping:
                held.check()
                save.run(state)
            if stopping:
                break
            for action in actions:
                if action.due(train_step):
                    with (
                        contextlib.suppress(Interrupted),
                        preemption.ending(),
                        watchdog.paused(),
                        window.paused(),
                    ):
                        action.run(train_step, _ema_params(state, program))
    return train_step, preemption.received


def _actions(checked: Checked, writer: metrics.Writer) -> list[EmaAction]:
    config, steps = checked.config, checked.config.train.steps
    actions: list[EmaAction] = []
    if config.train.samples:
        due = Every(config.train.sample_every, steps)
        actions.append(SampleGrid(due, checked.model, checked.conditions, writer))
    if checked.evaluate:
        due = Every(config.evaluation.every_steps, steps)
        actions.append(Evaluation(due, checked.model, checked.evaluate, writer))
    if checked.validation:
        due = Every(config.validation.every_steps, steps)
        actions.append(Validate(due, checked.model.workdir, checked.validation, writer))
    return actions


def _ema_params(state: TrainState, program: Program) -> Params:
    return state.params | to_device_memory(state.ema, program.shardings.ema)


def _update(
    checked: Checked, program: Program, state: TrainState, train_step: int
) -> tuple[TrainState, metrics.Metrics]:
    """Run one train step on the next batch."""
    mesh = checked.model.mesh
    # Outside the transfer guard: with several processes, making global arrays counts as a transfer.
    batch = to_devices(next(checked.iterator), mesh)
    with jax.set_mesh(mesh), jax.transfer_guard("disallow"):
        if checked.encode:
            x = checked.encode(batch["x"], batch["index"], checked.config.seed, train_step)
            batch = batch | {"x": x}
        return program.step(state, batch)


def to_devices(batch: Any, mesh: jax.sharding.Mesh) -> Any:
    """Make global arrays, sharded over the mesh, from this process's part of the batch."""
    rows = len(batch["x"])
    # Of P processes, process p reads samples p, p + P, p + 2P, … of the global order.
    index = np.arange(rows, dtype=np.int32) * jax.process_count() + jax.process_index()
    sharding = batch_sharding(mesh)
    return jax.tree.map(
        lambda leaf: jax.make_array_from_process_local_data(sharding, leaf),
        batch | {"index": index},
    )

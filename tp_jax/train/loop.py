"""Training, a phase after the other: check, build, restore, loop, end."""

from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from tp_jax.messages.progress import say
from tp_jax.models.flops import train_step_flops
from tp_jax.models.parameters import Params
from tp_jax.parallel.sharding import batch_sharding
from tp_jax.train import metrics
from tp_jax.train.checkpoint import Checkpoints
from tp_jax.train.liveness import Preemption, Watchdog
from tp_jax.train.periodic import Evaluation, Every, Log, Pictures, Save, WithAverage
from tp_jax.train.setup import Checked, Program, Start, build, check, restore
from tp_jax.train.state import TrainState, on_device
from tp_jax.train.summary import start_lines
from tp_jax.workdir.record import write_workdir


def train(config: ConfigDict, workdir: epath.Path) -> None:
    """Trains to `config.train.steps`, from the newest checkpoint in the workdir if there is one.

    Raises:
      UserError: something in the config, the data, the base or the workdir doesn't fit; nothing
        has been written then.
      TrainingError: a loss or gradient isn't finite, or a checkpoint can't be written; the
        checkpoints before it are kept.
    """
    checked = check(config, workdir)
    model = checked.model
    program = build(config, model.model, model.built.objective, model.mesh)
    start = restore(checked, program)
    if start is None:
        return
    write_workdir(workdir, config, checked.text_space)
    # A killed run must leave the config before anything else, or the workdir would look foreign.
    checkpoints = start.checkpoints or Checkpoints(workdir, config.checkpoint)
    writer = metrics.open_writer(workdir)
    for text in start_lines(checked, program, start.first):
        say(text)
    window = _window(checked, start)
    last = _loop(checked, program, start, checkpoints, window, writer)
    writer.flush()
    checked.iterator.close()
    if last < config.train.steps:
        say(f"stopped by SIGTERM after step {last}, which is saved: the same command goes on")
    else:
        seconds = metrics.duration(window.seconds)
        say(f"done: {last} steps in {seconds} of training; see {workdir}")


def _window(checked: Checked, start: Start) -> metrics.Window:
    fields = checked.config.train
    flops = train_step_flops(checked.model.built.model, fields.batch_size, fields.trainable)
    return metrics.Window(flops, fields.batch_size, start.seconds)


def _loop(
    checked: Checked,
    program: Program,
    start: Start,
    checkpoints: Checkpoints,
    window: metrics.Window,
    writer: Any,
) -> int:
    """Runs all steps, or as many as there is time for; returns the last train_step."""
    config, steps, train_step = checked.config, checked.config.train.steps, start.first
    log = Log(Every(config.train.log_every, steps), window, writer)
    saved_every = Every(config.checkpoint.every_steps, steps)
    save = Save(saved_every, window, checkpoints, checked.iterator)
    actions, state = _actions(checked, writer), start.take_state()
    watchdog = Watchdog(config.train.hang_seconds)
    with checkpoints, Preemption() as preemption, watchdog:
        for train_step in range(start.first + 1, steps + 1):
            state, step_metrics = _update(checked, program, state, train_step)
            window.add(train_step, step_metrics)
            watchdog.beat(train_step)
            if train_step == start.first + 1:
                window.leave_out_compilation()
            if log.due(train_step):
                log.run(train_step)
            stopping = preemption.is_due(train_step) and train_step < steps
            if save.due(train_step) or stopping:
                save.run(state)
            if stopping:
                break
            for action in actions:
                if action.due(train_step):
                    with watchdog.paused(), window.paused():
                        action.run(train_step, _averaged(state, program))
    return train_step


def _actions(checked: Checked, writer: Any) -> list[WithAverage]:
    config, steps = checked.config, checked.config.train.steps
    drawn, scored = config.train.sample_every, config.evaluation.every_steps
    actions: list[WithAverage] = []
    if config.train.samples:
        due = Every(drawn, steps)
        actions.append(Pictures(due, checked.model, checked.conditions, writer))
    if checked.evaluate:
        actions.append(Evaluation(Every(scored, steps), checked.model, checked.evaluate, writer))
    return actions


def _averaged(state: TrainState, program: Program) -> Params:
    return state.params | on_device(state.ema, program.shardings.ema)


def _update(
    checked: Checked, program: Program, state: TrainState, train_step: int
) -> tuple[TrainState, metrics.Metrics]:
    """One step, on the next batch."""
    mesh = checked.model.mesh
    # With several processes, building global arrays counts as a transfer.
    batch = _to_devices(next(checked.iterator), mesh)
    with jax.set_mesh(mesh), jax.transfer_guard("disallow"):
        if checked.encode:
            x = checked.encode(batch["x"], batch["index"], checked.config.seed, train_step)
            batch = batch | {"x": x}
        return program.step(state, batch)


def _to_devices(batch: Any, mesh: jax.sharding.Mesh) -> Any:
    """This process's rows of the global batch, as global arrays cut over the mesh."""
    rows = len(batch["x"])
    # Process p reads every P-th sample of the global order, from the p-th on.
    index = np.arange(rows, dtype=np.int32) * jax.process_count() + jax.process_index()
    sharding = batch_sharding(mesh)
    return jax.tree.map(
        lambda leaf: jax.make_array_from_process_local_data(sharding, leaf),
        batch | {"index": index},
    )

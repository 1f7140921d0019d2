"""The training loop, top to bottom."""

from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from tp_jax import config as config_lib
from tp_jax import data
from tp_jax.latents.codec import load_codec
from tp_jax.messages.progress import say
from tp_jax.models import build_model
from tp_jax.models.flops import train_step_flops
from tp_jax.models.parameters import init_params
from tp_jax.parallel.mesh import check_batch_size, create_mesh
from tp_jax.parallel.sharding import batch_sharding, device_bytes, with_shardings
from tp_jax.train import checkpoint, metrics
from tp_jax.train.liveness import Preemption, Watchdog
from tp_jax.train.optimizer import make_optimizer
from tp_jax.train.periodic import _Evaluation, _picture_conditions, _Pictures
from tp_jax.train.state import abstract_state, make_state, on_device
from tp_jax.train.step import jit_train_step
from tp_jax.train.summary import _start_lines
from tp_jax.workdir import record as workdir_lib
from tp_jax.workdir.checkpoints import FOLDER, load_base


def train(config: ConfigDict, workdir: epath.Path) -> None:
    """Trains to `config.train.steps`, from the newest checkpoint in the workdir if there is one.

    Raises:
      UserError: something in the config, the data, the base or the workdir doesn't fit; nothing
        has been written then.
      TrainingError: a loss or gradient isn't finite, or a checkpoint can't be written; the
        checkpoints before it are kept.
    """
    # Check everything before anything is written.
    built = config_lib.build(config)
    mesh = create_mesh(config.mesh)
    check_batch_size(mesh, "config.train.batch_size", config.train.batch_size)
    micro_batch = config.train.batch_size // config.train.accumulate
    check_batch_size(mesh, "config.train.batch_size / accumulate", micro_batch)
    changes = workdir_lib.check_workdir(workdir, config)
    codec = load_codec(config.autoencoder, mesh)
    space = codec.space if codec else None
    source = data.open_source(config, space)
    encoder = data.open_text(source, config)
    text_space = encoder.space if encoder else source.text_space
    workdir_lib.check_text_space(workdir, text_space)
    if config.init.base:
        workdir_lib.check_text_space(epath.Path(config.init.base), text_space, "config.init.base")
    iterator = data.make_iterator(source, config, space, encoder)
    encode = codec.encode if data.encodes_on_the_fly(source, space) else None
    model = build_model(built.model)
    evaluation = _Evaluation(model, built, config, mesh, codec, workdir)
    optimizer = make_optimizer(config.optimizer, config.train.steps)
    steps = config.train.steps

    # The state: abstract with its shardings, then real, restored or made.
    abstract, shardings = abstract_state(
        model, optimizer, config.train.trainable, mesh, config.train.offload
    )
    params_shapes, params_shardings = abstract.params, shardings.params

    def fresh_params():
        params = jax.jit(lambda: init_params(model, config.seed), out_shardings=params_shardings)()
        if config.init.base:
            target = with_shardings(params_shapes["base"], params_shardings["base"])
            params["base"] = load_base(config.init.base, target, config.model)
        return params

    # A folder of checkpoints is made only when nothing can be refused any more.
    restored, checkpoints = None, None
    if (workdir / FOLDER).exists():
        checkpoints = checkpoint.Checkpoints(workdir, config.checkpoint)
        newest = max(checkpoints.steps(), default=0)
        if newest >= steps:
            say(
                f"{workdir} is trained already: {newest} of {steps} steps; raise config.train.steps"
            )
            checkpoints.close()
            return
        restored = checkpoints.restore_newest(with_shardings(abstract, shardings))
    if restored is None:
        make = jax.jit(
            lambda params: make_state(params, optimizer, config.train.trainable),
            out_shardings=shardings,
        )
        state, seconds, first = make(fresh_params()), 0.0, 0
    else:
        state, progress = restored
        iterator.set_state(progress.data)
        seconds, first = progress.seconds, int(jax.device_get(state.train_step))

    workdir_lib.write_workdir(workdir, config, text_space)
    checkpoints = checkpoints or checkpoint.Checkpoints(workdir, config.checkpoint)
    writer = metrics.open_writer(workdir)
    sizes = device_bytes(abstract, shardings)
    lines = _start_lines(
        config, built.model, workdir, source, params_shapes, mesh, sizes, first, changes
    )
    for text in lines:
        say(text)

    train_step_fn = jit_train_step(model, built.objective, optimizer, config, mesh, shardings)
    conditions = _picture_conditions(source, encoder, config)
    pictures = _Pictures(model, built, config, mesh, codec, workdir, writer, conditions)
    flops = train_step_flops(built.model, config.train.batch_size, config.train.trainable)
    window = metrics.Window(flops, config.train.batch_size, seconds)

    def averaged(state):
        return state.params | on_device(state.ema, shardings.ema)

    def save(train_step, state):
        # A checkpoint is a promise that the run was sound so far.
        window.check_finite()
        window.pause()
        progress = checkpoint.Progress(iterator.get_state(), window.seconds)
        checkpoints.save(state, progress)
        window.resume()

    with checkpoints, Preemption() as preemption, Watchdog(config.train.hang_seconds) as watchdog:
        for train_step in range(first + 1, steps + 1):
            # With several processes, building global arrays counts as a transfer.
            batch = _to_devices(next(iterator), mesh)
            with jax.set_mesh(mesh), jax.transfer_guard("disallow"):
                if encode:
                    x = encode(batch["x"], batch["index"], config.seed, train_step)
                    batch = batch | {"x": x}
                state, step_metrics = train_step_fn(state, batch)
            window.add(train_step, step_metrics)
            watchdog.beat(train_step)

            if train_step == first + 1:
                # Compilation isn't speed.
                window.check_finite()
                window.pause()
                window.restart()
            if train_step % config.train.log_every == 0 or train_step == steps:
                means = window.close()
                writer.write_scalars(train_step, metrics.scalars(means))
                say(metrics.line(train_step, steps, means))
            stopping = preemption.is_due(train_step) and train_step < steps
            if train_step % config.checkpoint.every_steps == 0 or train_step == steps or stopping:
                save(train_step, state)
            if stopping:
                break
            if train_step % config.train.sample_every == 0 or train_step == steps:
                window.pause()
                with watchdog.paused():
                    pictures.draw(train_step, averaged(state))
                window.resume()
            if evaluation.is_due(train_step):
                window.pause()
                with watchdog.paused():
                    evaluation.run(train_step, averaged(state), writer)
                window.resume()

    writer.flush()
    iterator.close()
    if train_step < steps:
        say(f"stopped by SIGTERM after step {train_step}, which is saved: the same command goes on")
        return
    say(f"done: {steps} steps in {metrics.duration(window.seconds)} of training; see {workdir}")


def _to_devices(batch: Any, mesh) -> Any:
    """This process's rows of the global batch, as global arrays cut over the mesh."""
    rows = len(batch["x"])
    # Process p reads every P-th sample of the global order, from the p-th on.
    index = np.arange(rows, dtype=np.int32) * jax.process_count() + jax.process_index()
    sharding = batch_sharding(mesh)
    return jax.tree.map(
        lambda leaf: jax.make_array_from_process_local_data(sharding, leaf),
        batch | {"index": index},
    )

"""The training loop, top to bottom."""

import sys
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from tp_jax import config as config_lib
from tp_jax import data
from tp_jax.generation import Generator, cycled_labels
from tp_jax.images import make_grid, save_png, to_uint8
from tp_jax.models import build_model
from tp_jax.models.flops import train_step_flops
from tp_jax.parallel.mesh import BATCH_AXES, check_batch_size, create_mesh
from tp_jax.parallel.sharding import batch_sharding, replicated, tree_shardings
from tp_jax.train import checkpoint, metrics
from tp_jax.train import workdir as workdir_lib
from tp_jax.train.optimizer import make_optimizer
from tp_jax.train.state import abstract_params, init_params, make_state, with_shardings
from tp_jax.train.step import make_train_step


def train(config: ConfigDict, workdir: epath.Path) -> None:
    """Trains to `config.train.steps`, from the newest checkpoint in the workdir if there is one.

    Raises:
      UserError: something in the config, the data, the base or the workdir doesn't fit; nothing
        has been written then.
      TrainingError: a loss or gradient isn't finite; the checkpoints before it are kept.
    """
    # Check everything before anything is written.
    built = config_lib.build(config)
    mesh = create_mesh(config.mesh)
    check_batch_size(mesh, "config.train.batch_size", config.train.batch_size)
    micro_batch = config.train.batch_size // config.train.accumulate
    check_batch_size(mesh, "config.train.batch_size / accumulate", micro_batch)
    changes = workdir_lib.check_workdir(workdir, config)
    source = data.open_source(config)
    iterator = data.make_iterator(source, config)
    model = build_model(built.model)
    optimizer = make_optimizer(config.optimizer, config.train.steps)
    steps = config.train.steps

    # The state: abstract, then its shardings, then real, restored or made.
    params_shapes = abstract_params(model)
    params_shardings = tree_shardings(params_shapes, mesh)
    abstract = jax.eval_shape(
        lambda params: make_state(params, optimizer, config.train.trainable), params_shapes
    )
    shardings = tree_shardings(abstract, mesh)

    def fresh_params():
        params = jax.jit(lambda: init_params(model, config.seed), out_shardings=params_shardings)()
        if config.init.base:
            target = with_shardings(params_shapes["base"], params_shardings["base"])
            params["base"] = checkpoint.load_base(config.init.base, target)
        return params

    # A folder of checkpoints is made only when nothing can be refused any more.
    has_checkpoints = (workdir / checkpoint.FOLDER).exists()
    manager = checkpoint.open_manager(workdir, config.checkpoint) if has_checkpoints else None
    newest = manager.latest_step() if manager else None
    if newest is not None and newest >= steps:
        _say(f"{workdir} is trained already: {newest} of {steps} steps; raise config.train.steps")
        manager.close()
        return
    if newest is None:
        make = jax.jit(
            lambda params: make_state(params, optimizer, config.train.trainable),
            out_shardings=shardings,
        )
        state, seconds = make(fresh_params()), 0.0
    else:
        target = with_shardings(abstract, shardings)
        state, progress = checkpoint.restore(manager, newest, target)
        iterator.set_state(progress.data)
        seconds = progress.seconds

    workdir_lib.write_workdir(workdir, config)
    manager = manager or checkpoint.open_manager(workdir, config.checkpoint)
    writer = metrics.open_writer(workdir)
    for text in _start_lines(config, workdir, source, params_shapes, mesh, newest, changes):
        _say(text)

    train_step_fn = jax.jit(
        make_train_step(model, built.objective, optimizer, config),
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )
    pictures = _Pictures(model, built, config, mesh, workdir, writer)
    flops = train_step_flops(built.model, config.train.batch_size, config.train.trainable)
    window = metrics.Window(flops, config.train.batch_size, seconds)

    def save(train_step, state):
        # A checkpoint is a promise that the run was sound so far.
        window.check_finite()
        window.pause()
        progress = checkpoint.Progress(iterator.get_state(), window.seconds)
        checkpoint.save(manager, state, progress)
        window.resume()

    first = newest or 0
    # Whatever ends the loop, a save under way is finished.
    with manager:
        for train_step in range(first + 1, steps + 1):
            with jax.transfer_guard("disallow"):
                batch = _to_devices(next(iterator), mesh)
                state, step_metrics = train_step_fn(state, batch)
            window.add(train_step, step_metrics)

            if train_step == first + 1:
                # Compilation isn't speed.
                window.check_finite()
                window.pause()
                window.restart()
            if train_step % config.train.log_every == 0 or train_step == steps:
                means = window.close()
                writer.write_scalars(train_step, metrics.scalars(means))
                _say(metrics.line(train_step, steps, means))
            if train_step % config.checkpoint.every_steps == 0 or train_step == steps:
                save(train_step, state)
            if train_step % config.train.sample_every == 0 or train_step == steps:
                window.pause()
                pictures.draw(train_step, state.params | state.ema)
                window.resume()

    writer.flush()
    iterator.close()
    _say(f"done: {steps} steps in {metrics.duration(window.seconds)} of training; see {workdir}")


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


class _Pictures:
    """A grid of EMA samples every so often, always from the same noise."""

    def __init__(self, model, built, config, mesh, workdir, writer):
        shards = int(np.prod([mesh.shape[axis] for axis in BATCH_AXES]))
        self._count = config.train.samples
        batch_size = -(-max(self._count, 1) // shards) * shards
        self._generator = Generator(model, built.objective, built.sampler, mesh, batch_size)
        self._num_classes = getattr(config.model, "num_classes", 0)
        self._seed, self._workdir, self._writer = config.seed, workdir, writer

    def draw(self, train_step: int, params: Any) -> None:
        """Samples, writes `samples/<train_step>.png` and an image to TensorBoard."""
        if not self._count:
            return
        labels = cycled_labels(None, self._count, self._num_classes)
        batches = self._generator.batches(params, {"label": labels}, self._seed)
        grid = make_grid(to_uint8(np.concatenate(list(batches))))
        if jax.process_index() == 0:
            path = self._workdir / "samples" / f"{train_step:08d}.png"
            save_png(path, grid)
            shown = grid if grid.shape[-1] in (1, 3) else grid[..., :3]
            self._writer.write_images(train_step, {"samples": shown[None]})
            _say(f"samples of step {train_step}: {path}")


def _start_lines(config, workdir, source, params_shapes, mesh, newest, changes) -> list[str]:
    def millions(tree):
        return f"{sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(tree)) / 1e6:,.2f} M"

    thinking = config.model.thinking
    shape = " × ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    device = jax.devices()[0].device_kind
    lines = [
        f"tp_jax in {workdir}: {jax.device_count()} × {device}, mesh {shape}",
        f"data {config.data.source}: {len(source.records):,} images, batch "
        f"{config.train.batch_size}",
        f"model {config.model.kind}: base {millions(params_shapes['base'])} parameters, thinking "
        f"{millions(params_shapes.get('thinking', {}))} in blocks {thinking.layers} "
        f"(M={thinking.experts}, T={thinking.latent_steps}, r={thinking.rank}), "
        f"training {config.train.trainable}",
    ]
    lines += [f"changed since the last start: {change}" for change in changes]
    if newest is not None:
        lines.append(f"going on from checkpoint {newest}")
    lines.append("compiling the first step …")
    return lines


def _say(text: str) -> None:
    if jax.process_index() == 0:
        print(text, file=sys.stderr, flush=True)

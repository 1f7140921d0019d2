"""The data pipeline of a config, alone and in training: does a train step wait for it?"""

import pathlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from tp_jax.performance.contenders import changed, prepare_training
from tp_jax.performance.measure import Contender, Group, Stream, Timed, ratio
from tp_jax.performance.options import BenchOptions
from tp_jax.train.loop import to_devices
from tp_jax.train.setup import Checked, check

ONE_BATCH, PIPELINE = "train step, always the same batch", "train step, on the pipeline"


def groups(options: BenchOptions) -> Iterator[Group]:
    """Yield the pipeline alone, and train steps with and without it."""
    # As it trains, but from random weights.
    config = changed(options.config, options.config.train.trainable)
    size = config.train.batch_size

    def pipeline() -> Stream:
        return Stream(_check(config).iterator, 1)

    yield Group("pipeline", (Contender("pipeline alone", pipeline, images=size),))
    contenders = (
        Contender(ONE_BATCH, lambda: _same_batch(config), images=size),
        Contender(
            PIPELINE,
            lambda: _on_pipeline(config),
            images=size,
            compare_to=(ONE_BATCH,),
            derive=waiting,
        ),
    )
    yield Group("training on the pipeline", contenders)


def _check(config: ConfigDict) -> Checked:
    with tempfile.TemporaryDirectory() as folder:
        return check(config, epath.Path(pathlib.Path(folder) / "new"))


def _same_batch(config: ConfigDict) -> Timed:
    training = prepare_training(config)
    return Timed(training.call, training.facts)


def _on_pipeline(config: ConfigDict) -> Timed:
    checked, training = _check(config), prepare_training(config)
    mesh, encode = checked.model.mesh, checked.encode
    iterator: Iterator[Any] = checked.iterator
    step = 0

    def call() -> Any:
        nonlocal step
        step += 1
        training.batch = to_devices(next(iterator), mesh)
        if encode:
            with jax.set_mesh(mesh):
                x = encode(training.batch["x"], training.batch["index"], config.seed, step)
            training.batch = training.batch | {"x": x}
        return training.call()

    close: Callable[[], Any] = checked.iterator.close
    return Timed(call, training.facts, close)


def waiting(times: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Return the share of a train step that is more than that of a batch on the devices."""
    return {"waiting_share": max(0.0, 1 - 1 / ratio(times[PIPELINE], times[ONE_BATCH]).median)}

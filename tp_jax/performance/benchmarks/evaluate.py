"""Images to the statistics of FID, sFID and Inception Score, with random weights of Inception."""

import itertools
from collections.abc import Iterator

import jax
import numpy as np
from ml_collections import ConfigDict

from tp_jax.evals.adm.features import SIDE, Extractor
from tp_jax.evals.adm.reference import compute_statistics
from tp_jax.models.inception import Inception
from tp_jax.parallel.axes import DATA_PARALLEL
from tp_jax.parallel.mesh import create_mesh
from tp_jax.performance.contenders import random_weights
from tp_jax.performance.measure import Contender, Group, Stream, Timed
from tp_jax.performance.options import BenchOptions


def groups(options: BenchOptions) -> Iterator[Group]:
    """Yield the features, and two batches of images to statistics."""
    config, size = options.config, options.config.evaluation.batch_size
    features = Contender("images to features", lambda: _features(config), images=size)
    yield Group("features", (features,))
    statistics = Contender("two batches to statistics", lambda: _statistics(config))
    yield Group("statistics", (statistics,))


def _features(config: ConfigDict) -> Stream:
    extractor, batch = _inputs(config)
    return Stream(extractor.batches(itertools.repeat(batch)), len(batch), lambda f: len(f.pool))


def _statistics(config: ConfigDict) -> Timed:
    extractor, batch = _inputs(config)

    def call() -> object:
        return compute_statistics(
            iter([batch] * 2), 2 * len(batch), extractor, "statistics"
        ).features

    return Timed(call)


def _inputs(config: ConfigDict) -> tuple[Extractor, np.ndarray]:
    model = Inception()
    shape = jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), np.float32)
    params = random_weights(jax.eval_shape(model.init, jax.random.key(0), shape)["params"])
    mesh, size = create_mesh(DATA_PARALLEL), config.evaluation.batch_size
    extractor = Extractor(
        lambda params, images: model.apply({"params": params}, images),
        params, "adm", "random weights", mesh, size,
    )  # fmt: skip
    side = 8 * config.model.image_size
    return extractor, np.random.default_rng(0).integers(0, 256, (size, side, side, 3), np.uint8)

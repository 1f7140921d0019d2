"""What a command waits for before its first step: imports, tracing, compiling."""

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import jax
from jax.experimental.compilation_cache import compilation_cache
from ml_collections import ConfigDict

from tp_jax import config as config_lib
from tp_jax.data import abstract_batch
from tp_jax.models import build_model
from tp_jax.parallel.mesh import create_mesh
from tp_jax.performance.contenders import changed, compile_step
from tp_jax.performance.measure import Contender, Group, SelfTimed
from tp_jax.performance.options import BenchOptions
from tp_jax.train.setup import build, check_batches

CACHE = ("jax_compilation_cache_dir", "jax_enable_compilation_cache",
         "jax_persistent_cache_min_compile_time_secs",
         "jax_persistent_cache_min_entry_size_bytes")  # fmt: skip


def groups(options: BenchOptions) -> Iterator[Group]:
    """Yield one group: imports, and tracing and compiling the train step."""
    config = changed(options.config, options.config.train.trainable)

    def contender(name: str, seconds: Callable[[], float]) -> Contender:
        return Contender(name, lambda: SelfTimed(seconds))

    def part(name: str) -> Callable[[], float]:
        return lambda: _compile(config)[f"{name}_seconds"]

    def cached() -> float:
        with tempfile.TemporaryDirectory() as folder, _cache(folder):
            _compile(config)
            return _compile(config)["compile_seconds"]

    contenders = (
        contender("import jax", lambda: _import("jax")),
        contender("import of training", lambda: _import("tp_jax.train.loop")),
        contender("trace the train step", part("trace")),
        contender("compile the train step", part("compile")),
        contender("compile it from the cache", cached),
    )
    yield Group("start-up", contenders)


def _import(name: str) -> float:
    """Return the seconds of a Python that imports a module and ends."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {name}"], check=True)
    return time.perf_counter() - started


def _compile(config: ConfigDict) -> dict[str, float]:
    """Trace and compile the train step, and return the seconds of each."""
    built, mesh = config_lib.build(config), create_mesh(config.mesh)
    check_batches(config, mesh)
    model = build_model(built.model)
    program = build(config, model, built.objective, mesh)
    batch = abstract_batch(config, model)
    with jax.set_mesh(mesh):
        return compile_step(lambda: program.step.trace(program.abstract, batch))[1]


@contextlib.contextmanager
def _cache(folder: str) -> Iterator[None]:
    """Keep compiled programs in a folder, inside the block."""
    before = {name: getattr(jax.config, name) for name in CACHE}
    try:
        for name, value in zip(CACHE, (folder, True, 0, -1), strict=True):
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()

"""Fixtures: a tiny config, one workdir trained with it for all tests that read one, the entries."""

import contextlib
import functools
import io
import os
import pathlib
import re
import runpy
import sys

# Before jax is imported: four devices, so that meshes can be tested anywhere, and programs that
# compile fast rather than run fast.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true",
)

import jax
import pytest
from absl import flags
from etils import epath
from jax.experimental.compilation_cache import compilation_cache
from ml_collections import ConfigDict

from tp_jax.config import default
from tp_jax.train.loop import train

flags.FLAGS.mark_as_parsed()


def tiny_config(**train_fields) -> ConfigDict:
    """Digits, four blocks of width 16, two of which think."""
    config = default("dit", "flow")
    config.model.update(
        image_size=8, channels=1, num_classes=10, patch=4, depth=4, width=16, heads=2
    )
    config.model.thinking.update(layers=(1, 2), rank=2, gate_width=8)
    config.train.update(
        steps=6, batch_size=8, ema_decay=0.9, log_every=2, sample_every=6, samples=4
    )
    config.train.update(**train_fields)
    config.optimizer.learning_rate = 1e-2
    config.checkpoint.every_steps = 3
    config.sampling.update(sampler="euler", steps=3, guidance_scale=1.5)
    return config


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> epath.Path:
    """A workdir trained for six steps. Read it only."""
    workdir = epath.Path(tmp_path_factory.mktemp("trained")) / "run"
    train(tiny_config(), workdir)
    return workdir


@pytest.fixture(scope="session")
def trained_shapes(tmp_path_factory):
    """A workdir of a model that takes text. Read it only."""
    workdir = epath.Path(tmp_path_factory.mktemp("text")) / "run"
    from small_configs import tiny_shapes

    config = tiny_shapes()
    # Enough for what the text says to reach the output, which starts at zero.
    config.train.update(steps=8, ema_decay=0.1)
    config.optimizer.learning_rate = 3e-2
    config.evaluation.update(suite="shapes", batch_size=4)
    config.evaluation.shapes.num = 6
    train(config, workdir)
    return workdir


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Programs that this file compiles, for its own runs and for the processes that it starts."""
    folder = tmp_path_factory.mktemp("cache")
    settings = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield {name.upper(): str(value) for name, value in settings.items()}
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, cache):
    """A workdir that was trained in one go, and its losses. Read it only."""
    from resuming import STEPS, small_config, trained_losses

    workdir = tmp_path_factory.mktemp("uninterrupted") / "run"
    losses = trained_losses(small_config(every_steps=STEPS), workdir)
    assert list(losses) == list(range(1, STEPS + 1))
    return workdir, losses


@pytest.fixture
def one_device():
    """The first of the virtual devices, as a list."""
    return jax.devices()[:1]


def snapshot(folder):
    """Names, sizes and times of all that is in a folder."""
    found = {path: path.stat() for path in sorted(pathlib.Path(folder).rglob("*"))}
    return {path: (stat.st_size, stat.st_mtime_ns) for path, stat in found.items()}


def run_entry(module, *arguments):
    """Exit code, stdout and stderr of `python -m tp_jax.<module>`, without a new process."""
    before, code = set(flags.FLAGS), 0
    stdout, stderr = io.StringIO(), io.StringIO()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [module, *map(str, arguments)])
            # The name that config files are imported under.
            patch.delitem(sys.modules, "config_config", raising=False)
            with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
                runpy.run_module(f"tp_jax.{module}", run_name="__main__")
    except SystemExit as ended:
        code = ended.code
    finally:
        # So that another entry may define flags of the same names.
        for name in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, name)
    return code, stdout.getvalue(), stderr.getvalue()


@pytest.fixture
def refused(tmp_path):
    """A function that runs an entry, checks that it refuses in one line, and that nothing changed.

    A test keeps its files in tmp_path / "place", which is watched, as are the folders in `watch`.
    """
    (tmp_path / "place").mkdir()

    def check(module, *arguments, match, watch=()):
        watched = [tmp_path / "place", *watch]
        before = [snapshot(folder) for folder in watched]
        code, _, stderr = run_entry(module, *arguments)
        assert code == 2, stderr
        assert len(stderr.splitlines()) == 1, stderr
        assert stderr.startswith("error: ") and "Traceback" not in stderr
        assert re.search(match, stderr), stderr
        assert len(stderr) < 500, stderr
        assert [snapshot(folder) for folder in watched] == before

    return check


@pytest.fixture(scope="session")
def converted(tmp_path_factory):
    """A function from the name of a golden file to the folder of its converted weights."""
    from published_weights import KINDS, convert, torch_state

    @functools.cache
    def folder(name):
        place = tmp_path_factory.mktemp(name)
        heads = ["--heads=4"] if name in ("dit", "sd3") else []
        said = convert(place, torch_state(name), KINDS.get(name, "sd-vae"), *heads)
        (place / "said").write_text(said)
        return place / "out"

    return folder


@pytest.fixture(scope="session")
def extractor():
    from stand_in_extractor import make_extractor

    return make_extractor()


@pytest.fixture(scope="session")
def coco(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets") / "coco"
    from captioned_images import make_coco

    make_coco(folder)
    return folder


@pytest.fixture
def machine(tmp_path):
    from fake_machine import Machine

    return Machine(tmp_path)

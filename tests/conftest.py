"""Shared fixtures and helpers: a tiny config, trained workdirs and running the entries."""

import atexit
import contextlib
import functools
import gc
import io
import os
import pathlib
import re
import runpy
import shutil
import sys
import tempfile

from virtual_devices import xla_flags

# Set before jax is imported. With four devices, meshes can be tested on any machine.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", xla_flags(devices=4))
# One folder of compiled programs for all processes of these tests, and none of the user's.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="tp_jax_compiled_")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import jax
import pytest
from absl import flags
from etils import epath
from ml_collections import ConfigDict

from tp_jax.config import default
from tp_jax.train.loop import train

flags.FLAGS.mark_as_parsed()
# Tracing makes many objects, few of which are in cycles: collect garbage less often.
gc.set_threshold(50_000, 10, 10)


def tiny_config(**train_fields) -> ConfigDict:
    """A DiT on digits with four blocks of width 16; blocks 1 and 2 think."""
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
    """A workdir trained for six steps. Tests must not change it."""
    workdir = epath.Path(tmp_path_factory.mktemp("trained")) / "run"
    train(tiny_config(), workdir)
    return workdir


@pytest.fixture(scope="session")
def trained_shapes(tmp_path_factory):
    """A workdir of a text-to-image model of Shapes. Tests must not change it."""
    workdir = epath.Path(tmp_path_factory.mktemp("text")) / "run"
    from small_configs import tiny_shapes

    config = tiny_shapes()
    # The output starts at zero; with this many steps it depends on the text.
    config.train.update(steps=8, ema_decay=0.1)
    config.optimizer.learning_rate = 3e-2
    config.evaluation.update(suite="shapes", batch_size=4)
    config.evaluation.shapes.num = 6
    train(config, workdir)
    return workdir


@pytest.fixture(scope="session")
def analysed(trained):
    """A model whose experts matter, and what `tp_jax.analysis` collects of it."""
    from analysed import analyse

    return analyse(trained)


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory):
    """A workdir that was trained without interruption, and its losses. Tests must not change it."""
    from resuming import STEPS, small_config, trained_losses

    workdir = tmp_path_factory.mktemp("uninterrupted") / "run"
    losses = trained_losses(small_config(every_steps=STEPS), workdir)
    assert list(losses) == list(range(1, STEPS + 1))
    return workdir, losses


@pytest.fixture
def one_device():
    """A list with only the first virtual device."""
    return jax.devices()[:1]


def snapshot(folder):
    """Sizes and modification times of all files and folders in a folder, by path."""
    found = {path: path.stat() for path in sorted(pathlib.Path(folder).rglob("*"))}
    return {path: (stat.st_size, stat.st_mtime_ns) for path, stat in found.items()}


def run_entry(module, *arguments):
    """Run `python -m tp_jax.<module>` in this process; return exit code, stdout and stderr."""
    before, code = set(flags.FLAGS), 0
    stdout, stderr = io.StringIO(), io.StringIO()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [module, *map(str, arguments)])
            # ml_collections imports every config file under this name.
            patch.delitem(sys.modules, "config_config", raising=False)
            with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
                runpy.run_module(f"tp_jax.{module}", run_name="__main__")
    except SystemExit as ended:
        code = ended.code
    finally:
        # Another entry may define flags with the same names.
        for name in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, name)
    return code, stdout.getvalue(), stderr.getvalue()


@pytest.fixture
def refused(tmp_path):
    """A function that checks that an entry ends with a one-line error and changes no file.

    It runs `python -m tp_jax.<module>` with the arguments and expects exit code 2 and an error that
    matches `match`. No file may change in tmp_path / "place", where tests keep their inputs and
    outputs, nor in the folders of `watch`.
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
    """A function that converts the weights of a golden file, once; returns the folder."""
    from published_weights import KINDS, convert, torch_state

    @functools.cache
    def folder(name):
        place = tmp_path_factory.mktemp(name)
        heads = ["--heads=4"] if name in ("dit", "sd3") else []
        log = convert(place, torch_state(name), KINDS.get(name, "sd-vae"), *heads)
        (place / "log").write_text(log)
        return place / "out"

    return folder


@pytest.fixture(scope="session")
def extractor():
    """A stand-in for the Inception network, on all virtual devices."""
    from stand_in_extractor import make_extractor

    return make_extractor()


@pytest.fixture(scope="session")
def coco(tmp_path_factory):
    """A captioned data set in MSCOCO's layout. Tests must not change it."""
    from captioned_images import make_coco

    folder = tmp_path_factory.mktemp("sets") / "coco"
    make_coco(folder)
    return folder


@pytest.fixture
def machine(tmp_path):
    """A fake machine for the launch scripts."""
    from fake_machine import Machine

    return Machine(tmp_path)

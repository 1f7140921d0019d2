"""Commands keep compiled programs for the next start, and freed memory for the next allocation."""

import collections
import os
import subprocess
import sys

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache
from resuming import FakeWriter, assert_identical, read_checkpoint, small_config

from tp_jax.cli import runtime
from tp_jax.train import metrics
from tp_jax.train.loop import train

SETTINGS = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty cache folder of the user, and jax without a folder for compiled programs."""
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    yield tmp_path
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture
def events():
    """How often each of jax's monitoring events was seen."""
    seen = collections.Counter()

    def count(event, **_):
        seen[event.rpartition("/")[2]] += 1

    jax.monitoring.register_event_listener(count)
    yield seen
    jax.monitoring.unregister_event_listener(count)


@pytest.mark.slow
def test_a_second_start_compiles_nothing_and_gives_the_same_bits(home, events, monkeypatch):
    monkeypatch.setattr(metrics, "TensorBoardWriter", lambda workdir: FakeWriter())
    runtime.keep_compiled_programs()
    config, found = small_config(steps=4, every_steps=4), []
    for name in ("first", "second"):
        jax.clear_caches()
        events.clear()
        train(config, home / name)
        found.append(dict(events))
    first, second = found
    assert first["cache_misses"] >= 3  # initialization, state, train step
    assert "cache_misses" not in second
    assert second["cache_hits"] == second["compile_requests_use_cache"] > 0
    assert_identical(*(read_checkpoint(home / name, 4)[0] for name in ("first", "second")))


def test_damaged_programs_are_compiled_again(home, events):
    runtime.keep_compiled_programs()
    for _ in range(2):
        jax.clear_caches()
        assert jax.jit(lambda x: x + 1)(1) == 2
        files = list(runtime.cache_folder().glob("*-cache"))
        assert files
        for file in files:
            file.write_bytes(file.read_bytes()[:-10])
    assert not events["cache_hits"]


def test_a_choice_of_the_user_is_kept(home, monkeypatch):
    jax.config.update("jax_compilation_cache_dir", str(home / "own"))
    runtime.keep_compiled_programs()
    assert jax.config.jax_compilation_cache_dir == str(home / "own")
    jax.config.update("jax_compilation_cache_dir", None)
    for setting, value in (
        ("jax.config.jax_enable_compilation_cache", False),
        ("jax.distributed.is_initialized", lambda: True),
    ):
        with monkeypatch.context() as patch:
            if callable(value):
                patch.setattr(setting, value)
            else:
                jax.config.update("jax_enable_compilation_cache", value)
            runtime.keep_compiled_programs()
            jax.config.update("jax_enable_compilation_cache", True)
        assert jax.config.jax_compilation_cache_dir is None
    assert not (home / "cache").exists()


def test_without_a_folder_to_write_to_there_is_no_cache(home, monkeypatch):
    (home / "cache").write_text("")
    runtime.keep_compiled_programs()
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc")
    runtime.keep_compiled_programs()
    assert jax.config.jax_compilation_cache_dir is None


def test_the_folder_depends_on_the_cpu_and_only_the_user_can_write_to_it(home, monkeypatch):
    runtime.keep_compiled_programs()
    folder = runtime.cache_folder()
    assert jax.config.jax_compilation_cache_dir == str(folder)
    assert folder.is_relative_to(home / "cache") and folder.stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(runtime, "_cpu", lambda: "another CPU")
    assert runtime.cache_folder() != folder


def test_the_oldest_programs_are_removed(tmp_path):
    for age, name in enumerate(("a/new", "b/middle", "a/old")):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(100))
        os.utime(path, (1e9 - age, 1e9 - age))
    runtime._remove_oldest(tmp_path, 200)
    assert sorted(path.name for path in tmp_path.glob("*/*")) == ["middle", "new"]


COUNT_PAGE_FAULTS = """
from tp_jax.cli import runtime
runtime.keep_freed_memory()
import resource, jax, jax.numpy as jnp
run = jax.jit(lambda x: jnp.outer(x, x) @ x)
x = jnp.ones(3_500)  # a matrix has 47 MiB, 12,000 pages
for _ in range(20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    run(x).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_running_a_program_again_needs_no_new_memory_from_the_system():
    command = [sys.executable, "-c", COUNT_PAGE_FAULTS]
    assert int(subprocess.check_output(command, text=True)) < 1_000

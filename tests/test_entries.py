"""Help and flag errors of every command answer without importing jax."""

import pathlib
import subprocess
import sys

import pytest

import tp_jax
from tp_jax.evals import SUITES

ENTRIES = ("main", "sample", "evaluate", "analyze", "ablate", "prepare", "convert", "bench", "aot")
ROOT = pathlib.Path(__file__).parents[1]
# Run the command, and report on stdout whether it imported jax.
RUN = """
import runpy, sys
entry, sys.argv[1:] = sys.argv[1], sys.argv[2:]
try:
    runpy.run_module(f"tp_jax.{entry}", run_name="__main__", alter_sys=True)
finally:
    print("jax" in sys.modules or "flax" in sys.modules)
"""
QUICKSTART = f"--config={ROOT}/configs/quickstart.py"


def run(entry, *arguments):
    """Return the exit code, the last line of stdout, and stderr."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, entry, *arguments], capture_output=True, text=True, cwd=ROOT
    )
    return done.returncode, done.stdout.strip().splitlines()[-1], done.stderr


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_help_and_version_do_not_import_jax(entry, flag):
    assert run(entry, flag) == (0, "False", "")


@pytest.mark.parametrize("suite", SUITES)
def test_help_of_suites_does_not_import_jax(suite):
    assert run("evaluate", f"--suite={suite}", "--help") == (0, "False", "")


def test_importing_the_package_does_not_import_jax():
    code = "import sys, tp_jax, tp_jax.config; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_package_is_found_from_the_folder_that_contains_a_clone(tmp_path):
    # Without an __init__.py, this folder must not hide the installed package.
    (tmp_path / "tp_jax").mkdir()
    code = "import tp_jax; tp_jax.__version__"
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path).returncode == 0


def test_the_package_lists_its_commands():
    done = subprocess.run([sys.executable, "-m", "tp_jax"], capture_output=True, text=True)
    assert all(f"python -m tp_jax.{entry}" in done.stdout for entry in ENTRIES)


@pytest.mark.parametrize("config", sorted((ROOT / "configs").glob("*.py")), ids=lambda p: p.stem)
def test_a_wrong_field_of_every_config_is_named_without_importing_jax(config):
    code, imported, error = run("main", f"--config={config}", "--workdir=w", "--config.seeed=1")
    assert (code, imported) == (2, "False"), error
    assert "config has no 'seeed'; did you mean 'seed'?" in error


@pytest.mark.parametrize(
    ("entry", "arguments", "message"),
    [
        *((entry, ["--nowhere=1"], "flag 'nowhere'") for entry in ENTRIES),
        ("main", [QUICKSTART, "--workdir=w", "--config.train.stepz=3"], "has no 'stepz'"),
        ("prepare", [QUICKSTART, "--config.prepare.nums=3"], "has no 'nums'"),
        ("main", ["--workdir=w"], "--config is missing"),
        ("main", [QUICKSTART], "--workdir is missing"),
        ("sample", ["--workdir=w"], "--out is missing"),
        ("prepare", [], "--config is missing"),
        ("convert", ["--kind=dit", "--source=x"], "--out is missing"),
        ("bench", ["--what=train,speed"], "--what=train,speed: choose one of train, "),
        ("aot", [QUICKSTART], "--topology is missing"),
        ("evaluate", ["--samples=x"], "--inception is missing"),
        ("evaluate", ["--suite=nothing"], "--suite='nothing' is unknown"),
        ("evaluate", ["--sweep", "--workdir=w", "--out=o"], "--reference is missing"),
        ("evaluate", ["--suite=geneval", "--make", "--workdir=w"], "--out is missing"),
        ("evaluate", ["--suite=geneval"], "--results is missing"),
        ("evaluate", ["--suite=geneval", "--score", "--results=r"], "--samples is missing"),
        ("evaluate", ["--suite=dpg"], "--results is missing"),
        ("evaluate", ["--suite=shapes"], "--samples is missing"),
        ("evaluate", ["--suite=frozenlake", "--out=o"], "--workdir is missing"),
    ],
)
def test_flag_errors_do_not_import_jax(entry, arguments, message):
    code, imported, error = run(entry, *arguments)
    assert (code, imported) == (2, "False"), error
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error


def test_the_version_is_in_one_place():
    (line,) = [
        line
        for line in (ROOT / "tp_jax" / "__init__.py").read_text().splitlines()
        if line.startswith("__version__")
    ]
    assert line == f'__version__ = "{tp_jax.__version__}"'
    assert tp_jax.__version__ not in (ROOT / "setup.py").read_text()

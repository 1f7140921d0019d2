"""Rules of the code base: style, types, imports, lengths of files."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SCRIPTS = [*sorted((ROOT / "launch").glob("*.s[hb]*")), ROOT / ".ci" / "run"]


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check", "."],
        ["ruff", "format", "--check", "."],
        ["lint-imports", "--no-cache"],
        ["shellcheck", "--external-sources", *SCRIPTS],
        pytest.param(
            ["basedpyright", "--project", ROOT, "--pythonpath", sys.executable],
            marks=pytest.mark.slow,
        ),
    ],
    ids=["lint", "format", "layers", "shell", "types"],
)
def test_style(command):
    program = pathlib.Path(sys.executable).with_name(command[0])
    done = subprocess.run([program, *command[1:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_file_is_longer_than_400_lines():
    lengths = {path: len(path.read_text().splitlines()) for path in ROOT.rglob("*.py")
               if not path.relative_to(ROOT).parts[0].startswith((".venv", "build"))}  # fmt: skip
    assert len(lengths) > 150
    assert {path: count for path, count in lengths.items() if count > 400} == {}


def test_no_test_file_imports_another():
    for path in (ROOT / "tests").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not [name for name in names if name.startswith("test_")], path


def test_the_package_has_only_entries_and_the_config_outside_its_folders():
    loose = {path.stem for path in (ROOT / "tp_jax").glob("*.py")} - {"__init__", "__main__"}
    entries = {
        "main", "sample", "evaluate", "analyze", "ablate", "prepare", "convert", "export",
        "bench", "aot",
    }  # fmt: skip
    assert loose == entries | {"config"}
    for entry in entries:
        assert len((ROOT / "tp_jax" / f"{entry}.py").read_text().splitlines()) < 80

"""The house's own rules: style, imports, and a notebook that runs."""

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
    ],
    ids=["lint", "format", "layers", "shell"],
)
def test_style(command):
    program = pathlib.Path(sys.executable).with_name(command[0])
    done = subprocess.run([program, *command[1:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_notebook_samples_a_workdir(trained, tmp_path):
    import papermill

    parameters = dict(workdir=str(trained), labels=[1, 2], num=4, latent_steps=[1, 3])
    notebook = papermill.execute_notebook(
        ROOT / "notebooks" / "sample.ipynb",
        tmp_path / "run.ipynb",
        parameters,
        cwd=ROOT / "notebooks",
        progress_bar=False,
    )
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    pictures = [out for out in outputs if "image/png" in out.get("data", {})]
    assert len(pictures) == 3

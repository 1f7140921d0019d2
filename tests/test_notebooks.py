"""The notebooks run from top to bottom, install what one variable says, and are small."""

import json
import pathlib
import re
import runpy

import papermill
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from ml_collections import ConfigDict
from packaging.requirements import Requirement

from tp_jax.config import flat

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMES = [path.stem for path in NOTEBOOKS]
# A stand-in for ipywidgets, whose sliders are set to other values than the ones they start with.
WIDGETS = """
def slider(value, min, max, continuous_update, step=1):
    assert min <= value <= max and not continuous_update
    return value + step if value + step <= max else value

FloatSlider = IntSlider = slider

def fixed(value):
    return value

def interact(draw, **values):
    draw(**values)
    print("moved to", values)
"""


def cells(name, tag=None):
    """Return the code cells of a notebook, or the one that has a tag."""
    content = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())
    code = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    if tag is None:
        return code
    (cell,) = [cell for cell in code if tag in cell["metadata"].get("tags", ())]
    return "".join(cell["source"])


def run(name, folder, **parameters):
    """Run a notebook; return the number of its pictures and the text that it printed."""
    done = papermill.execute_notebook(
        ROOT / "notebooks" / f"{name}.ipynb",
        folder / "run.ipynb",
        parameters,
        cwd=ROOT / "notebooks",
        progress_bar=False,
    )
    outputs = [output for cell in done.cells for output in cell.get("outputs", [])]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    return len(pictures), "".join(output.get("text", "") for output in outputs)


@pytest.mark.slow
def test_samples_by_class(trained, tmp_path):
    pictures, text = run("sample", tmp_path, workdir=str(trained), labels=[1, 2], num=4)
    # Samples, two plain calls in place of the sliders, and the table of the latent steps.
    assert pictures == 4
    assert "EMA weights of train step 6" in text and "with M=2 experts and T=2" in text


def test_samples_from_prompts_with_sliders(trained_shapes, tmp_path, monkeypatch):
    (tmp_path / "ipywidgets.py").write_text(WIDGETS)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    options = dict(prompts=["a cross", "two rings"], num=2, guidance_scale=2.0)
    pictures, text = run("sample", tmp_path, workdir=str(trained_shapes), **options)
    # The model has no thinking layers, so there is no table and no slider of latent steps.
    assert pictures == 2
    assert "moved to {'guidance_scale': 2.5, 'seed': 1, 'latent_steps': None}" in text


@pytest.mark.slow
def test_samples_by_class_with_sliders(trained, tmp_path, monkeypatch):
    (tmp_path / "ipywidgets.py").write_text(WIDGETS)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    pictures, text = run("sample", tmp_path, workdir=str(trained), num=2, seed=100)
    assert pictures == 3
    assert "moved to {'guidance_scale': 2.0, 'seed': 100, 'latent_steps': 3}" in text


@pytest.mark.slow
def test_routing_of_a_workdir(trained, tmp_path):
    options = dict(num=3, analyse_num=20, analysis=str(tmp_path / "analysis"))
    pictures, text = run("routing", tmp_path, workdir=str(trained), **options)
    # A table of maps for each of two blocks, the curves, and the tokens that keep their expert.
    assert pictures == 4
    assert "'sampler steps': 3, 'latent steps': 2, 'images': 3, 'tokens': 4" in text


@pytest.mark.slow
def test_routing_with_one_latent_step(trained, tmp_path):
    options = dict(num=2, latent_steps=1, analyse_num=20, analysis=str(tmp_path / "analysis"))
    pictures, text = run("routing", tmp_path, workdir=str(trained), **options)
    assert pictures == 3 and "there is one latent step, so no token can change" in text


@pytest.mark.slow
def test_the_quickstart_trains_and_looks(tmp_path, monkeypatch):
    # conftest sets XLA_FLAGS for quick compilation; this run needs fast programs instead.
    monkeypatch.delenv("XLA_FLAGS")
    pictures, text = run("quickstart", tmp_path, workdir=str(tmp_path / "run"), steps=60)
    # The loss, samples, the base against thinking, and the routing.
    assert pictures == 4
    assert "done: 60 train steps" in text and "of the tokens keep their expert" in text


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_small_and_has_no_outputs_but_pictures(name):
    assert (ROOT / "notebooks" / f"{name}.ipynb").stat().st_size < 200_000
    for cell in cells(name):
        assert cell["execution_count"] is None
        for output in cell["outputs"]:
            assert set(output["data"]) == {"image/png"} and not output["metadata"]


@pytest.mark.parametrize("name", NAMES)
def test_each_notebook_has_the_same_cell_that_installs(name):
    assert cells(name, "install") == cells("sample", "install")
    assert re.search('^install = "', cells(name, "parameters"), re.M)


def installed(install, monkeypatch):
    """Run the cell that installs; return the requirement that it gives to pip, or None."""
    given = []

    class Shell:
        def run_line_magic(self, name, line):
            assert name == "pip"
            given.append(re.fullmatch(r'install --quiet "\{requirement\}"', line)[0])

    code = TransformerManager().transform_cell(cells("sample", "install"))
    names = {"install": install, "get_ipython": Shell}
    exec(code, names)
    return names.get("requirement") if given else None


def test_what_is_installed_is_one_variable(tmp_path, monkeypatch, capsys):
    wheel = tmp_path / "tp_jax-0.1.0-py3-none-any.whl"
    wheel.touch()
    address = "git+https://example.org/tp_jax@1a2b3c"
    assert installed("", monkeypatch) is None
    assert installed(str(wheel), monkeypatch) == f"{wheel}[train]"
    assert installed(str(tmp_path), monkeypatch) == f"{tmp_path}[train]"
    assert installed(address, monkeypatch) == f"tp_jax[train] @ {address}"
    assert Requirement(installed(address, monkeypatch)).url == address
    monkeypatch.chdir(tmp_path)
    # pip would look for a bare name in its index.
    assert installed(wheel.name, monkeypatch) == f"{wheel}[train]"
    assert re.match(r"tp_jax \d.*, jax \d", capsys.readouterr().out)


def test_mistakes_of_what_to_install_are_named(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="install='nowhere': there is no such wheel or fol"):
        installed("nowhere", monkeypatch)
    for address in ("git+https://example.org/a/tp_jax", "git+ssh://git@example.org/a/tp_jax"):
        with pytest.raises(ValueError, match="add @ and a commit or a tag, to pin what is inst"):
            installed(address, monkeypatch)


@pytest.mark.parametrize("name", NAMES)
def test_the_config_is_that_of_the_quickstart(name, tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr("tp_jax.train.loop.train", lambda *arguments: trained.append(arguments))
    workdir = str(tmp_path / "new")
    exec(cells(name, "config"), {"workdir": workdir, "steps": 1_000})
    ((config, folder),) = trained
    expected = runpy.run_path(str(ROOT / "configs" / "quickstart.py"))["get_config"]()
    assert isinstance(config, ConfigDict) and str(folder) == workdir
    assert flat(config) == flat(expected)
    if name != "quickstart":
        (tmp_path / "new").mkdir()
        exec(cells(name, "config"), {"workdir": workdir})
        assert len(trained) == 1

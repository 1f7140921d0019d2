"""The examples in docstrings and in README run and print what they say."""

import contextlib
import doctest
import importlib
import io
import pathlib
import pkgutil
import re

import pytest

import tp_jax

ROOT = pathlib.Path(__file__).parents[1]


def modules_with_examples():
    found = []
    for module in pkgutil.walk_packages(tp_jax.__path__, "tp_jax."):
        path = ROOT / module.name.replace(".", "/")
        path = path / "__init__.py" if module.ispkg else path.with_suffix(".py")
        if ">>> " in path.read_text():
            found.append(module.name)
    return found


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples_in_docstrings(name):
    module = importlib.import_module(name)
    results = doctest.testmod(module, optionflags=doctest.ELLIPSIS, verbose=False)
    assert results.attempted > 0
    assert results.failed == 0, f"run: python -m doctest {module.__file__}"


def test_the_python_lines_in_the_readme(trained):
    (block,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.S | re.M)
    lines = [line for line in block.splitlines() if line]
    assert len(lines) == 5 and '"runs/quickstart"' in block
    printed, names = io.StringIO(), {}
    with contextlib.redirect_stdout(printed):
        exec(block.replace("runs/quickstart", str(trained)), names)
    assert names["images"].shape == (3, 8, 8, 1)
    assert (names["routing"].images == names["images"]).all()
    steps = names["model"].loaded.built.sampler.steps
    assert printed.getvalue() == f"({steps}, 2, 3, 4)\n"

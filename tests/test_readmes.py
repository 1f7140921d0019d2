"""Links, commands, flags and config keys in the README files exist."""

import importlib.util
import json
import pathlib
import re
import shlex

import pytest

from tp_jax.config import default, flat
from tp_jax.diffusion import OBJECTIVES
from tp_jax.models import MODELS

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not path.relative_to(ROOT).parts[0].startswith((".venv", ".pytest_cache", "runs"))
)
FLAGS = json.loads((ROOT / "tests" / "golden" / "options.json").read_text())["flags"]
# Of absl itself.
COMMON_FLAGS = {"help", "version", "flagfile"}
# Options of DPG-Bench's script, papermill and pip.
OTHER_PROGRAMS = {"pic-num", "resolution", "parameters_yaml", "no-deps"}
# Names fields of earlier versions.
CHANGELOG = ROOT / ".github" / "CHANGELOG.md"


def names(path):
    return str(path.relative_to(ROOT))


def flags_of(entry, arguments):
    """Return the names of the flags of a command, with the negatives of boolean ones."""
    suites = [a.partition("=")[2] for a in arguments if a.startswith("--suite=")]
    found = FLAGS[f"evaluate {suites[0] if suites else 'adm'}" if entry == "evaluate" else entry]
    known = set(COMMON_FLAGS)
    for name in found:
        plain = name.removeprefix("[no]")
        known |= {plain, f"no{plain}", f"no-{plain}"} if name != plain else {plain}
    return known


def config_fields(file):
    """Return the names of all fields and sections of the config that --config=FILE[:ARG] names."""
    path, _, argument = file.partition(":")
    assert (ROOT / path).exists(), f"{path} doesn't exist"
    spec = importlib.util.spec_from_file_location("config_file", ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(argument) if argument else module.get_config()
    return with_sections(flat(config))


def with_sections(fields):
    parts = [name.split(".") for name in fields]
    return {".".join(part[:i]) for part in parts for i in range(1, len(part) + 1)}


ALL_FIELDS = set().union(*(with_sections(flat(default(m, d))) for m in MODELS for d in OBJECTIVES))


def commands(text):
    """Yield the words of each command in the bash blocks."""
    for block in re.findall(r"^```bash\n(.*?)^```", text, re.S | re.M):
        for line in block.replace("\\\n", " ").splitlines():
            try:
                words = shlex.split(line, comments=True)
            except ValueError:
                continue  # a quoted text over several lines, such as a Python program
            if words:
                yield words


def headings(path):
    """Return the anchors of a Markdown file, as GitHub forms them."""
    found = re.findall(r"^#+ (.*)$", path.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in found}


@pytest.mark.parametrize("path", FILES, ids=names)
def test_relative_links_lead_somewhere(path):
    for target in re.findall(r"\]\(\s*([^)\s]+)\s*\)", path.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        linked = (path.parent / file).resolve() if file else path
        assert linked.exists(), f"{target} doesn't exist"
        assert linked.is_relative_to(ROOT)
        if anchor:
            assert anchor in headings(linked), f"{target}: there is no such heading"


@pytest.mark.parametrize("path", FILES, ids=names)
def test_commands_have_existing_flags_and_config_fields(path):
    for words in commands(path.read_text()):
        modules = [word for word in words if word.startswith("tp_jax.")]
        if "-m" in words and modules:
            check_entry(modules[0].removeprefix("tp_jax."), words)
        scripts = [word for word in words if re.fullmatch(r"launch/\S+\.(sh|sbatch)", word)]
        for script in scripts[:1]:
            check_script(script, words[words.index(script) + 1 :])


def check_entry(entry, words):
    arguments = words[words.index(f"tp_jax.{entry}") + 1 :]
    configs = [a.partition("=")[2] for a in arguments if a.startswith("--config=")]
    fields = config_fields(configs[0]) if configs and configs[0].endswith(".py") else None
    if configs and ":" in configs[0]:
        fields = config_fields(configs[0])
    known = flags_of(entry, arguments)
    for argument in arguments:
        if not argument.startswith("-"):
            continue
        name = argument.lstrip("-").partition("=")[0]
        if name.startswith("config."):
            field = name.removeprefix("config.")
            assert field in (ALL_FIELDS if fields is None else fields), f"{entry}: --{name}"
        else:
            assert name in known, f"{entry} has no --{name}"


def check_script(script, arguments):
    """Options of launch scripts are those that their own texts mention."""
    assert (ROOT / script).exists(), f"{script} doesn't exist"
    text = (ROOT / script).read_text() + (ROOT / "launch" / "common.sh").read_text()
    for argument in arguments:
        if argument == "--":
            break
        if not argument.startswith("--"):
            continue
        name = argument.lstrip("-").partition("=")[0]
        if name.startswith("config."):
            assert name.removeprefix("config.") in ALL_FIELDS, f"{script}: --{name}"
        else:
            assert re.search(rf"\b{re.escape(name)}\b", text), f"{script} has no --{name}"


@pytest.mark.parametrize("path", [file for file in FILES if file != CHANGELOG], ids=names)
def test_config_fields_in_the_text_exist(path):
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.S | re.M)
    for code in re.findall(r"`([^`\n]+)`", text):
        for field in re.findall(r"(?<![\w./])(?:--)?config\.([a-z_][\w.]*\w)", code):
            # Names of files, and of attributes in Python code.
            if re.search(r"\.(py|json)$|^(py|json)$", field) or "(" in code:
                continue
            assert field in ALL_FIELDS, f"config.{field} in `{code}`"


@pytest.mark.parametrize("path", FILES, ids=names)
def test_flags_in_the_text_exist(path):
    known = set().union(*(flags_of(*name.split()[:1], []) for name in FLAGS))
    known |= {f.removeprefix("[no]") for flags in FLAGS.values() for f in flags}
    known |= {"no" + f.removeprefix("[no]") for fs in FLAGS.values() for f in fs if "[no]" in f}
    scripts = "\n".join(
        file.read_text()
        for file in [*(ROOT / "launch").iterdir(), *(ROOT / "notebooks").glob("*.py")]
        if file.suffix != ".lock"
    )
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.S | re.M)
    for code in re.findall(r"`([^`\n]+)`", text):
        for name in re.findall(r"(?<![\w-])--([a-z][\w-]*)", code):
            name = name.removeprefix("no") if name.startswith("noconfig") else name
            found = name in known | OTHER_PROGRAMS or re.search(rf"\b{name}\b", scripts)
            assert found, f"--{name} in `{code}`"


def test_the_top_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 150


def test_promises_name_tests_that_exist():
    """The README of training names the test that holds each promise."""
    text = (ROOT / "tp_jax/train/README.md").read_text().partition("## What is promised")[2]
    named = re.findall(r"`(test_\w+\.py)(?:::(test_\w+))?`", text)
    assert len(named) > 15
    for file, test in named:
        content = (ROOT / "tests" / file).read_text()
        assert not test or f"def {test}(" in content, f"{file} has no {test}"

"""A list of all options, so that a review sees every change of it; and the flags of the suites."""

import json

import pytest
from options import GOLDEN, options

from tp_jax.evals import SUITES, owners_of_flag


@pytest.fixture(scope="module")
def found():
    return options()


@pytest.mark.parametrize("part", ["config", "flags"])
def test_options_are_those_of_the_golden_file(found, part):
    message = "if the change is intended, run: PYTHONPATH=tests python tests/options.py"
    assert found[part] == json.loads(GOLDEN.read_text())[part], message


def test_every_suite_has_the_flags_of_a_suite(found):
    for name in SUITES:
        assert {"suite", "out", "workdir"} <= found["flags"][f"evaluate {name}"].keys()


def test_the_suite_may_be_given_in_a_flag_file(tmp_path, refused):
    (tmp_path / "flags").write_text("--suite=geneval\n--results=nowhere.jsonl\n")
    refused("evaluate", f"--flagfile={tmp_path / 'flags'}", match="nowhere.jsonl: there is no such")


@pytest.mark.parametrize("name", SUITES)
def test_flags_of_another_suite_are_refused_by_name(name, found, refused):
    own = found["flags"][f"evaluate {name}"]
    others = {flag for suite in SUITES for flag in found["flags"][f"evaluate {suite}"]} - set(own)
    assert others
    for flag in sorted(others):
        flag = flag.removeprefix("[no]")
        assert owners_of_flag(flag) and name not in owners_of_flag(flag)
    match = f"--{flag} isn't a flag of --suite={name} but of {', '.join(owners_of_flag(flag))}"
    refused("evaluate", f"--suite={name}", f"--{flag}=1", match=match)

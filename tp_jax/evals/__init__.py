"""Evaluations by the name of their suite; a new one is one file and one line here."""

from collections.abc import Callable
from typing import Any

from tp_jax.evals.adm import suite as adm
from tp_jax.evals.adm.suite import Task
from tp_jax.messages.errors import UserError

# `--suite` -> what runs it
SUITES: dict[str, Callable[[Task], Any]] = {"adm": adm.run}


def run_suite(name: str, task: Task) -> Any:
    """Runs a suite.

    Raises:
      UserError: there is no such suite, or it can't be run as asked.
    """
    if name not in SUITES:
        raise UserError(f"suite {name!r} is unknown: choose one of {', '.join(SUITES)}")
    return SUITES[name](task)

"""Suites of evaluations by their names.

A new one is a folder here with a subclass of `Suite`, and a line in `SUITES`. If it has settings
in training, they are a section `config.evaluation.NAME` in `tp_jax/config.py`. Import torch and
the like inside methods only, because every command imports all suites.
"""

from absl import flags

from tp_jax.evals.adm.suite import AdmSuite
from tp_jax.evals.dpg.suite import DpgSuite
from tp_jax.evals.frozenlake.suite import FrozenLakeSuite
from tp_jax.evals.geneval.suite import GenEvalSuite
from tp_jax.evals.shapes.suite import ShapesSuite
from tp_jax.evals.suite import Suite
from tp_jax.messages import renamed
from tp_jax.messages.errors import UserError

__all__ = ["SUITES", "Suite", "find_suite", "owners_of_flag"]

# `--suite` and `config.evaluation.suite` -> suite
SUITES: dict[str, Suite] = {
    "adm": AdmSuite(),
    "geneval": GenEvalSuite(),
    "dpg": DpgSuite(),
    "shapes": ShapesSuite(),
    "frozenlake": FrozenLakeSuite(),
}


def find_suite(name: str, asked_by: str) -> Suite:
    """The suite of a name.

    Args:
      asked_by: the flag or field that names it.

    Raises:
      UserError: there is none.
    """
    if name in renamed.SUITES:
        raise UserError(f"{asked_by}={name}: this suite is called {renamed.SUITES[name]} now")
    if name not in SUITES:
        raise UserError(f"{asked_by}={name!r} is unknown: choose one of {', '.join(SUITES)}")
    return SUITES[name]


def owners_of_flag(flag: str) -> list[str]:
    """Names of the suites that have a flag."""
    owners = []
    for name, suite in SUITES.items():
        values = flags.FlagValues()
        suite.define_flags(values)
        # absl writes the negative of a boolean flag with a leading "no".
        if flag in values or flag.removeprefix("no") in values:
            owners.append(name)
    return owners

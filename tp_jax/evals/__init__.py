"""Suites of evaluations by their names.

To add one, make a folder here with a `command.py` and a subclass of `Suite`, and add a line to
`SUITES`. If it has settings in training, they are a section `config.evaluation.NAME` in
`tp_jax/config.py`. The modules `command.py` don't import jax, so that --help is quick.
"""

from absl import flags

from tp_jax.evals.adm.command import COMMAND as ADM
from tp_jax.evals.command import SuiteCommand
from tp_jax.evals.dpg.command import COMMAND as DPG
from tp_jax.evals.frozenlake.command import COMMAND as FROZENLAKE
from tp_jax.evals.geneval.command import COMMAND as GENEVAL
from tp_jax.evals.shapes.command import COMMAND as SHAPES
from tp_jax.messages import renamed
from tp_jax.messages.errors import UserError

__all__ = ["SUITES", "SuiteCommand", "find_suite", "owners_of_flag"]

# `--suite` and `config.evaluation.suite` -> suite
SUITES: dict[str, SuiteCommand] = {
    "adm": ADM,
    "geneval": GENEVAL,
    "dpg": DPG,
    "shapes": SHAPES,
    "frozenlake": FROZENLAKE,
}


def find_suite(name: str, asked_by: str) -> SuiteCommand:
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

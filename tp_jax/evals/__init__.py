"""The registry of evaluation suites; README.md describes them and how to add one.

Nothing that this module imports may import jax, so that --help and flag errors are quick.
"""

from absl import flags

from tp_jax.evals.adm.command import COMMAND as ADM
from tp_jax.evals.command import SuiteCommand
from tp_jax.evals.digits.command import COMMAND as DIGITS
from tp_jax.evals.dpg.command import COMMAND as DPG
from tp_jax.evals.frozenlake.command import COMMAND as FROZENLAKE
from tp_jax.evals.geneval.command import COMMAND as GENEVAL
from tp_jax.evals.geneval2.command import COMMAND as GENEVAL2
from tp_jax.evals.shapes.command import COMMAND as SHAPES
from tp_jax.evals.validation.command import COMMAND as VALIDATION
from tp_jax.messages import renamed
from tp_jax.messages.errors import UserError

__all__ = ["SUITES", "SuiteCommand", "find_suite", "owners_of_flag"]

# value of `--suite` and `config.evaluation.suite` -> suite
SUITES: dict[str, SuiteCommand] = {
    "adm": ADM,
    "geneval": GENEVAL,
    "geneval2": GENEVAL2,
    "dpg": DPG,
    "shapes": SHAPES,
    "frozenlake": FROZENLAKE,
    "digits": DIGITS,
    "validation": VALIDATION,
}


def find_suite(name: str, asked_by: str) -> SuiteCommand:
    """Return the suite with this name.

    Args:
      name: key of `SUITES`.
      asked_by: the flag or config field with the name, for messages.

    Raises:
      UserError: there is no such suite.
    """
    if name in renamed.SUITES:
        raise UserError(f"{asked_by}={name}: this suite is called {renamed.SUITES[name]} now")
    if name not in SUITES:
        raise UserError(f"{asked_by}={name!r} is unknown: choose one of {', '.join(SUITES)}")
    return SUITES[name]


def owners_of_flag(flag: str) -> list[str]:
    """Return the names of the suites that have this flag."""
    owners = []
    for name, suite in SUITES.items():
        values = flags.FlagValues()
        suite.define_flags(values)
        # absl also accepts a boolean flag with a leading "no".
        if flag in values or flag.removeprefix("no") in values:
            owners.append(name)
    return owners

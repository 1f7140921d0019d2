"""Score images or a workdir: python -m tp_jax.evaluate --suite=SUITE …

--suite=SUITE --help lists the flags of that suite.
"""

from collections.abc import Sequence

from absl import flags

from tp_jax.cli import start
from tp_jax.cli.flags import define
from tp_jax.evals import SUITES, SuiteCommand, find_suite, owners_of_flag
from tp_jax.values.kinds import Word

DEFAULT = next(iter(SUITES))
SUMMARIES = "; ".join(f"{key}: {command.summary}" for key, command in SUITES.items())
define("suite", Word, DEFAULT, SUMMARIES)


def name() -> str:
    return start.peek("suite") or DEFAULT


def suite() -> SuiteCommand:
    return find_suite(name(), "--suite")


def usage() -> str:
    return f"{__doc__}\n{suite().usage}\n"


def define_flags() -> None:
    suite().define_flags(flags.FLAGS)


def required() -> Sequence[str]:
    return suite().required_flags(flags.FLAGS.flag_values_dict())


def explain_unknown(flag: str) -> str | None:
    owners = ", ".join(owners_of_flag(flag))
    if not owners:
        return None
    return f"--{flag} isn't a flag of --suite={name()} but of {owners}: see --help"


def main() -> None:
    suite().load().run(flags.FLAGS.flag_values_dict())


if __name__ == "__main__":
    start.run(
        main,
        usage,
        required=required,
        define_flags=define_flags,
        explain_unknown=explain_unknown,
    )

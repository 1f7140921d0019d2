"""Score: python -m tp_jax.evaluate --suite=SUITE …; --suite=SUITE --help lists its flags."""

from absl import flags

from tp_jax.cli import start
from tp_jax.evals import SUITES, Suite, find_suite, owners_of_flag

DEFAULT = next(iter(SUITES))
flags.DEFINE_string(
    "suite", DEFAULT, "; ".join(f"{name}: {suite.summary}" for name, suite in SUITES.items())
)


def asked_for() -> Suite:
    return find_suite(start.peek("suite") or DEFAULT, "--suite")


def usage() -> str:
    return f"{__doc__}\n\n{asked_for().usage}\n"


def define_flags() -> None:
    asked_for().define_flags(flags.FLAGS)


def explain_unknown(flag: str) -> str | None:
    owners = ", ".join(owners_of_flag(flag))
    if not owners:
        return None
    return f"--{flag} isn't for --suite={asked_for().name} but for {owners}: see --help"


def main() -> None:
    asked_for().run(flags.FLAGS.flag_values_dict())


if __name__ == "__main__":
    start.run(main, usage, define_flags=define_flags, explain_unknown=explain_unknown)

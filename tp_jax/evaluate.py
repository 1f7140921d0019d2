"""Score: python -m tp_jax.evaluate --suite=SUITE …; with --help, the flags of that suite.

--suite=adm --samples=FILE.npz|DIR --reference=FILE --inception=DIR    scores of images
--suite=adm --sweep --workdir=W --reference=FILE --inception=DIR --out=DIR
    scores of a workdir: guidance scales by latent steps, and the base model beside them
--suite=shapes|frozenlake --workdir=W --out=DIR                        draws and scores
--suite=shapes|frozenlake --collect=ROOT --out=FILE.json               mean and spread over seeds
--suite=geneval|dpg --make --workdir=W --prompts=P --out=DIR           images for official scorers
--suite=geneval|dpg --results=FILE                                     scores of their results
"""

from absl import flags

from tp_jax.cli import start
from tp_jax.evals import SUITES, find_suite, owners_of_flag

DEFAULT = "adm"
flags.DEFINE_string(
    "suite", DEFAULT, "; ".join(f"{name}: {suite.summary}" for name, suite in SUITES.items())
)


def define_flags() -> None:
    find_suite(start.peek("suite") or DEFAULT, "--suite").define_flags(flags.FLAGS)


def explain_unknown(flag: str) -> str | None:
    owners = owners_of_flag(flag)
    suite = start.peek("suite") or DEFAULT
    if not owners:
        return None
    return f"--{flag} isn't for --suite={suite} but for {', '.join(owners)}: see --help"


def main() -> None:
    find_suite(flags.FLAGS.suite, "--suite").run(flags.FLAGS.flag_values_dict())


if __name__ == "__main__":
    start.run(main, __doc__, define_flags=define_flags, explain_unknown=explain_unknown)

"""The command line of the digits suite: python -m tp_jax.evaluate --suite=digits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from absl import flags

from tp_jax.cli.flags import define
from tp_jax.cli.sampling_flags import define_sampling_flags, define_thinking_flag
from tp_jax.evals.command import (
    SuiteCommand,
    define_collect_flag,
    workdir_unless_collecting,
)
from tp_jax.values.kinds import Path

if TYPE_CHECKING:
    from tp_jax.evals.digits.suite import DigitsSuite

flags.disclaim_key_flags()


def define_flags(values: flags.FlagValues) -> None:
    """Define the flags for sampling digits, and for summaries over seeds."""
    define_sampling_flags(values, "number of images, of all classes in turn; 1,000 by default")
    define_thinking_flag(values)
    define("out", Path, None, "folder for the scores; with --collect, FILE.json", values)
    define_collect_flag(values)


def load() -> DigitsSuite:
    """Import the suite."""
    from tp_jax.evals.digits.suite import DigitsSuite

    return DigitsSuite()


COMMAND = SuiteCommand(
    summary="Fréchet distance and classes of generated digits",
    usage="""\
  --workdir=W --out=DIR                  sample digits and score them
  --collect=ROOT --out=FILE.json         mean and standard deviation over seeds""",
    define_flags=define_flags,
    required_flags=workdir_unless_collecting,
    load=load,
)

"""The command line of the validation suite: python -m tp_jax.evaluate --suite=validation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from absl import flags

from tp_jax.cli.flags import define
from tp_jax.cli.sampling_flags import (
    define_thinking_flag,
    define_variant_flags,
    define_workdir_flags,
)
from tp_jax.evals.command import (
    SuiteCommand,
    define_collect_flag,
    workdir_unless_collecting,
)
from tp_jax.values.kinds import Path

if TYPE_CHECKING:
    from tp_jax.evals.validation.suite import ValidationSuite

flags.disclaim_key_flags()


def define_flags(values: flags.FlagValues) -> None:
    """Define the flags for losses of a workdir, and for summaries over seeds."""
    define_workdir_flags(values)
    define_variant_flags(values)
    define_thinking_flag(values)
    define("out", Path, None, "folder for the losses; with --collect, FILE.json", values)
    define_collect_flag(values)


def load() -> ValidationSuite:
    """Import the suite."""
    from tp_jax.evals.validation.suite import ValidationSuite

    return ValidationSuite()


COMMAND = SuiteCommand(
    summary="the denoising loss on examples that training never reads",
    usage="""\
  --workdir=W --out=DIR                  the loss, also by timestep and of every example
  --collect=ROOT --out=FILE.json         mean and standard deviation over seeds""",
    define_flags=define_flags,
    required_flags=workdir_unless_collecting,
    load=load,
)

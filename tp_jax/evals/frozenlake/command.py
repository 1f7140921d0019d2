"""The command line of the frozenlake suite: python -m tp_jax.evaluate --suite=frozenlake."""

from __future__ import annotations

from typing import TYPE_CHECKING

from absl import flags

from tp_jax.cli.flags import define
from tp_jax.cli.sampling_flags import define_sampling_flags
from tp_jax.evals.command import (
    SuiteCommand,
    define_collect_flag,
    workdir_unless_collecting,
)
from tp_jax.values.kinds import Path

if TYPE_CHECKING:
    from tp_jax.evals.frozenlake.suite import FrozenLakeSuite

flags.disclaim_key_flags()


def define_flags(values: flags.FlagValues) -> None:
    """Define the flags for walks and for summaries over seeds."""
    define_sampling_flags(
        values,
        "number of maps of each size, 100 by default; with --maps, of maps from the file, all by "
        "default",
    )
    for name, text in (
        ("out", "folder for scores and pictures; with --collect, FILE.json"),
        ("maps", "file of maps; random maps by default"),
    ):
        define(name, Path, None, text, values)
    define_collect_flag(values)
    text = "continue from the true frame instead of the last generated frame"
    define("look", bool, False, text, values)


def load() -> FrozenLakeSuite:
    """Import the suite."""
    from tp_jax.evals.frozenlake.suite import FrozenLakeSuite

    return FrozenLakeSuite()


COMMAND = SuiteCommand(
    summary="walks through FrozenLake maps, played in the environment",
    usage="""\
  --workdir=W --out=DIR [--maps=FILE] [--look]     generate, play and score walks
  --collect=ROOT --out=FILE.json                   mean and standard deviation over seeds""",
    define_flags=define_flags,
    required_flags=workdir_unless_collecting,
    load=load,
)

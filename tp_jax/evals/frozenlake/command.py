"""The command line of the frozenlake suite: python -m tp_jax.evaluate --suite=frozenlake."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from absl import flags

from tp_jax.cli.sampling_flags import define_sampling_flags
from tp_jax.evals.command import SuiteCommand

if TYPE_CHECKING:
    from tp_jax.evals.frozenlake.suite import FrozenLakeSuite

flags.disclaim_key_flags()


def define_flags(values: flags.FlagValues) -> None:
    """Of walks, and of results over seeds."""
    define_sampling_flags(values, "maps of each size, 100 by default; the first of --maps")
    for name, text in (
        ("out", "folder for scores and pictures; --collect: FILE.json"),
        ("maps", "a file of maps; random ones by default"),
        ("collect", "a folder of VARIANT/SEED/scores.json, for mean and spread over seeds"),
    ):
        flags.DEFINE_string(name, None, text, flag_values=values)
    flags.DEFINE_boolean(
        "look", False, "draw every time from the true frame, not from the last drawn one",
        flag_values=values,
    )  # fmt: skip


def required_flags(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the flags that must be given, from the values of all flags."""
    return ("out",) if values["collect"] else ("workdir", "out")


def load() -> FrozenLakeSuite:
    """Import the suite."""
    from tp_jax.evals.frozenlake.suite import FrozenLakeSuite

    return FrozenLakeSuite()


COMMAND = SuiteCommand(
    summary="walks over maps of FrozenLake, played in the environment",
    usage="""\
  --workdir=W --out=DIR [--maps=FILE] [--look]     draws, plays and scores
  --collect=ROOT --out=FILE.json                   mean and spread over seeds""",
    define_flags=define_flags,
    required_flags=required_flags,
    load=load,
)

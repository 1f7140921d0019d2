"""The part of a suite that `tp_jax.evaluate` needs for --help and flag errors, without jax."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from tp_jax.cli.flags import define
from tp_jax.values.kinds import Path

if TYPE_CHECKING:
    from tp_jax.evals.suite import Suite

# absl then treats these flags as the calling entry's own and lists them in its --help.
flags.disclaim_key_flags()


@dataclasses.dataclass(frozen=True)
class SuiteCommand:
    """The command line of a suite; its module doesn't import jax, so that --help is quick.

    Attributes:
      summary: one line for help: what the suite measures.
      usage: lines for help: how its flags are combined.
      define_flags: adds the suite's flags, except --suite, to the given flag values.
      required_flags: from the values of all flags, the names of those that must be given.
      load: imports the suite and returns it.
    """

    summary: str
    usage: str
    define_flags: Callable[[flags.FlagValues], None]
    required_flags: Callable[[Mapping[str, Any]], Sequence[str]]
    load: Callable[[], Suite]


def define_collect_flag(values: flags.FlagValues) -> None:
    """Define --collect, which summarises scores over seeds.

    Args:
      values: the flag values to add it to.
    """
    text = "folder with VARIANT/SEED/scores.json: report mean and standard deviation over seeds"
    define("collect", Path, None, text, values)


def workdir_unless_collecting(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the required flags of a suite that scores a workdir, or collects scores."""
    return ("out",) if values["collect"] else ("workdir", "out")

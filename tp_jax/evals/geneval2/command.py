"""The command line of the geneval2 suite: python -m tp_jax.evaluate --suite=geneval2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from absl import flags

from tp_jax.cli.flags import define
from tp_jax.evals.command import SuiteCommand
from tp_jax.evals.prompted_flags import define_drawing_flags
from tp_jax.values.kinds import Path

if TYPE_CHECKING:
    from tp_jax.evals.geneval2.suite import GenEval2Suite

flags.disclaim_key_flags()
# The official scorer takes one image of each prompt.
SAMPLES_PER_PROMPT = 1


def define_flags(values: flags.FlagValues) -> None:
    """Define the flags for generating images and for reading results."""
    define_drawing_flags(values, SAMPLES_PER_PROMPT)
    for name, text in (
        ("out", "--make: folder for the images; otherwise FILE.json for the scores"),
        ("prompts", "your copy of geneval2_data.jsonl"),
        ("results", "FILE.json with the list of scores that the official scorer wrote"),
    ):
        define(name, Path, None, text, values)


def required_flags(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the flags that must be given, from the values of all flags."""
    return ("workdir", "out", "prompts") if values["make"] else ("results", "prompts")


def load() -> GenEval2Suite:
    """Import the suite."""
    from tp_jax.evals.geneval2.suite import GenEval2Suite

    return GenEval2Suite()


COMMAND = SuiteCommand(
    summary="questions about every part of a prompt, as GenEval 2 scores them (Soft-TIFA)",
    usage="""\
  --make --workdir=W --prompts=P --out=DIR       generate images for the official scorer
  --results=FILE.json --prompts=P                report scores from the scorer's results""",
    define_flags=define_flags,
    required_flags=required_flags,
    load=load,
)

"""The command line of the geneval suite: python -m tp_jax.evaluate --suite=geneval."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from absl import flags

from tp_jax.cli.flags import define
from tp_jax.evals.command import SuiteCommand
from tp_jax.evals.prompted_flags import define_drawing_flags
from tp_jax.values.kinds import Path

if TYPE_CHECKING:
    from tp_jax.evals.geneval.suite import GenEvalSuite

flags.disclaim_key_flags()
# Default of --samples_per_prompt.
SAMPLES_PER_PROMPT = 4


def define_flags(values: flags.FlagValues) -> None:
    """Define the flags for generating images, reading results, and scoring here."""
    define_drawing_flags(values, SAMPLES_PER_PROMPT)

    def path(name: str, text: str) -> None:
        define(name, Path, None, text, values)

    path("out", "--make: folder for the images; otherwise FILE.json for the scores")
    path("prompts", "your copy of GenEval's evaluation_metadata.jsonl")
    path("results", "FILE.jsonl written by the official scorer; with --score, file to write")
    define("score", bool, False, "judge the images here, with Mask2Former and CLIP", values)
    path("samples", "--score: folder with the images")
    path("detector", "--score: folder with Mask2Former's weights")
    path("clip", "--score: folder with CLIP's weights")


def required_flags(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the flags that must be given, from the values of all flags."""
    if values["make"]:
        return "workdir", "out", "prompts"
    return ("results", "samples", "detector", "clip") if values["score"] else ("results",)


def load() -> GenEvalSuite:
    """Import the suite."""
    from tp_jax.evals.geneval.suite import GenEvalSuite

    return GenEvalSuite()


COMMAND = SuiteCommand(
    summary="objects, counts, colours and positions, by GenEval's rules",
    usage="""\
  --make --workdir=W --prompts=P --out=DIR       generate images for the official scorer
  --results=FILE.jsonl [--prompts=P]             report scores from the scorer's results
  --score --samples=DIR --detector=DIR --clip=DIR --results=FILE.jsonl      judge images here""",
    define_flags=define_flags,
    required_flags=required_flags,
    load=load,
)

"""The command line of the dpg suite: python -m tp_jax.evaluate --suite=dpg."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from absl import flags

from tp_jax.cli.flags import define
from tp_jax.evals.command import SuiteCommand
from tp_jax.evals.prompted_flags import define_drawing_flags
from tp_jax.values.kinds import Path, Source

if TYPE_CHECKING:
    from tp_jax.evals.dpg.suite import DpgSuite

flags.disclaim_key_flags()
# Default of --samples_per_prompt.
SAMPLES_PER_PROMPT = 4


def define_flags(values: flags.FlagValues) -> None:
    """Define the flags for generating images and for reading results, and answering here."""
    define_drawing_flags(values, SAMPLES_PER_PROMPT)

    def path(name: str, text: str) -> None:
        define(name, Path, None, text, values)

    path("out", "--make: folder for the images; otherwise FILE.json for the scores")
    path("prompts", "--make: your copy of DPG-Bench's folder of prompts")
    path(
        "results",
        "FILE.txt written by the official scorer, or FILE.jsonl with answers; with --vqa, file to "
        "write",
    )
    path("questions", "your copy of dpg_bench.csv")
    path("samples", "--vqa: folder with the images")
    text = "folder with a model of transformers that answers the questions here, such as BLIP"
    define("vqa", Source, None, text, values)


def required_flags(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the flags that must be given, from the values of all flags."""
    if values["make"]:
        return "workdir", "out", "prompts"
    return ("results", "samples", "questions") if values["vqa"] else ("results",)


def load() -> DpgSuite:
    """Import the suite."""
    from tp_jax.evals.dpg.suite import DpgSuite

    return DpgSuite()


COMMAND = SuiteCommand(
    summary="questions about images of long prompts, as DPG-Bench scores them",
    usage="""\
  --make --workdir=W --prompts=P --out=DIR         generate images for the official scorer
  --results=FILE [--questions=dpg_bench.csv]       report scores from the scorer's results
  --vqa=DIR --samples=DIR --questions=dpg_bench.csv --results=FILE.jsonl     answer here""",
    define_flags=define_flags,
    required_flags=required_flags,
    load=load,
)

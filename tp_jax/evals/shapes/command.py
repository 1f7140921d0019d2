"""The command line of the shapes suite: python -m tp_jax.evaluate --suite=shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from absl import flags

from tp_jax.cli.flags import define
from tp_jax.evals.command import SuiteCommand, define_collect_flag
from tp_jax.evals.prompted_flags import define_drawing_flags
from tp_jax.values.kinds import Path

if TYPE_CHECKING:
    from tp_jax.evals.shapes.suite import ShapesSuite

flags.disclaim_key_flags()
# Default of --samples_per_prompt.
SAMPLES_PER_PROMPT = 1


def define_flags(values: flags.FlagValues) -> None:
    """Define the flags for generating images, scoring them, and summaries over seeds."""
    define_drawing_flags(values, SAMPLES_PER_PROMPT)

    def path(name: str, text: str) -> None:
        define(name, Path, None, text, values)

    path("out", "folder for the scores; --make: folder for the images; --collect: FILE.json")
    path("samples", "folder of images generated with --make: score these")
    define_collect_flag(values)


def required_flags(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the flags that must be given, from the values of all flags."""
    if values["make"]:
        return "workdir", "out"
    return ("out",) if values["workdir"] or values["collect"] else ("samples", "out")


def load() -> ShapesSuite:
    """Import the suite."""
    from tp_jax.evals.shapes.suite import ShapesSuite

    return ShapesSuite()


COMMAND = SuiteCommand(
    summary="GenEval's skills in pictures of coloured shapes, checked by a program",
    usage="""\
  --workdir=W --out=DIR                  generate images and score them
  --make --workdir=W --out=IMAGES        only generate images
  --samples=IMAGES --out=DIR             only score images
  --collect=ROOT --out=FILE.json         mean and standard deviation over seeds""",
    define_flags=define_flags,
    required_flags=required_flags,
    load=load,
)

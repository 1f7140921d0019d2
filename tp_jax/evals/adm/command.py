"""The command line of the adm suite: python -m tp_jax.evaluate --suite=adm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from absl import flags

from tp_jax.cli.flags import Numbers, define
from tp_jax.cli.sampling_flags import define_model_flags
from tp_jax.evals.command import SuiteCommand
from tp_jax.values.kinds import Images, LatentSteps, Path, Source, Word

if TYPE_CHECKING:
    from tp_jax.evals.adm.suite import AdmSuite

flags.disclaim_key_flags()
LatentStepsList = Annotated[
    tuple[LatentSteps, ...], "give numbers of latent steps from 1 to 1000, such as 1,2,4"
]


def define_flags(values: flags.FlagValues) -> None:
    """Define the flags for scoring images and for sweeps."""

    for name, annotation, default, text in (
        ("samples", Path, None, "FILE.npz with arr_0 (uint8, NHWC), or a folder of PNGs"),
        (
            "reference", Path, None,
            "published statistics, images, or a file of --save_statistics",
        ),
        ("inception", Source, None, "a folder written by tp_jax.convert --kind=inception"),
        (
            "dinov2", Source, None,
            "a folder with DINOv2, such as facebook/dinov2-large: score with its features too",
        ),
        ("protocol", Word, "adm", "adm or pytorch-fid: whose image preprocessing is used"),
        ("out", Path, None, "FILE.json for the scores; with --sweep, a folder"),
        ("save_statistics", Path, None, "FILE.npz to write, which can be a --reference later"),
        (
            "num", Images, None,
            "number of samples: the first ones of --samples, all by default; with --sweep, samples "
            "per cell, 50000 by default",
        ),
        (
            "sweep", bool, False,
            "score a workdir at several guidance scales and numbers of latent steps",
        ),
        (
            "guidance_scales", Numbers, (1.0, 1.25, 1.5, 2.0, 3.0),
            "--sweep: guidance scales, such as 1,1.5,2",
        ),
        (
            "latent_steps", LatentStepsList, (1, 2, 4),
            "--sweep: numbers of latent steps T, such as 1,2,4",
        ),
        (
            "base", Path, None,
            "--sweep: base checkpoint or workdir to compare with; by default the one that the "
            "workdir started from",
        ),
    ):  # fmt: skip
        define(name, annotation, default, text, values)
    define_model_flags(values)


def required_flags(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the flags that must be given, from the values of all flags."""
    if values["sweep"]:
        return "workdir", "out", "reference", "inception"
    return "samples", "inception"


def load() -> AdmSuite:
    """Import the suite."""
    from tp_jax.evals.adm.suite import AdmSuite

    return AdmSuite()


COMMAND = SuiteCommand(
    summary="FID, sFID, Inception Score, precision and recall",
    usage="""\
  --samples=FILE.npz|DIR --reference=FILE --inception=DIR [--dinov2=DIR]    score images
  --sweep --workdir=W --reference=FILE --inception=DIR --out=DIR
      score a workdir at every guidance scale and number of latent steps, and its base model""",
    define_flags=define_flags,
    required_flags=required_flags,
    load=load,
)

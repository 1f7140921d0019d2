"""The command line of the adm suite: python -m tp_jax.evaluate --suite=adm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from absl import flags

from tp_jax.cli.sampling_flags import define_model_flags
from tp_jax.evals.command import SuiteCommand

if TYPE_CHECKING:
    from tp_jax.evals.adm.suite import AdmSuite

flags.disclaim_key_flags()


def define_flags(values: flags.FlagValues) -> None:
    """Define the flags for scoring images and for sweeps."""

    def string(name: str, default: str | None, text: str) -> None:
        flags.DEFINE_string(name, default, text, flag_values=values)

    string("samples", None, "FILE.npz with arr_0 (uint8, NHWC), or a folder of PNGs")
    string("reference", None, "published statistics, images, or a file of --save_statistics")
    string("inception", None, "a folder written by tp_jax.convert --kind=inception")
    string("protocol", "adm", "adm or pytorch-fid: whose image preprocessing is used")
    string("out", None, "FILE.json for the scores; with --sweep, a folder")
    string("save_statistics", None, "FILE.npz to write, which can be a --reference later")
    flags.DEFINE_integer(
        "num", None,
        "number of samples: the first ones of --samples, all by default; with --sweep, samples per "
        "cell, 50000 by default",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_boolean(
        "sweep", False, "score a workdir at several guidance scales and numbers of latent steps",
        flag_values=values,
    )  # fmt: skip
    define_model_flags(values)
    flags.DEFINE_list(
        "guidance_scales", ["1", "1.25", "1.5", "2", "3"],
        "--sweep: guidance scales, such as 1,1.5,2", flag_values=values,
    )  # fmt: skip
    flags.DEFINE_list(
        "latent_steps", ["1", "2", "4"], "--sweep: numbers of latent steps T, such as 1,2,4",
        flag_values=values,
    )  # fmt: skip
    string(
        "base", None,
        "--sweep: base checkpoint or workdir to compare with; by default the one that the workdir "
        "started from",
    )  # fmt: skip


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
  --samples=FILE.npz|DIR --reference=FILE --inception=DIR    score images
  --sweep --workdir=W --reference=FILE --inception=DIR --out=DIR
      score a workdir at every guidance scale and number of latent steps, and its base model""",
    define_flags=define_flags,
    required_flags=required_flags,
    load=load,
)

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
    """Of images, and of sweeps."""

    def string(name: str, default: str | None, text: str) -> None:
        flags.DEFINE_string(name, default, text, flag_values=values)

    string("samples", None, "FILE.npz with arr_0 (uint8, NHWC), or a folder of PNGs")
    string("reference", None, "published statistics, images, or a saved statistics file")
    string("inception", None, "a folder written by tp_jax.convert --kind=inception")
    string("protocol", "adm", "adm or pytorch-fid: how images are resized for Inception")
    string("out", None, "FILE.json for the scores; a folder for --sweep")
    string("save_statistics", None, "FILE.npz, to be a --reference later")
    flags.DEFINE_integer(
        "num", None, "the first so many samples, all by default; 50000 for --sweep",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_boolean(
        "sweep", False, "score a workdir over guidance scales and latent steps",
        flag_values=values,
    )  # fmt: skip
    define_model_flags(values)
    flags.DEFINE_list(
        "guidance_scales", ["1", "1.25", "1.5", "2", "3"], "of the sweep, as 1,1.5,2",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_list(
        "latent_steps", ["1", "2", "4"], "of the sweep: numbers T, as 1,2,4", flag_values=values
    )
    string("base", None, "of the sweep: base checkpoint or workdir; what it began from")


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
  --samples=FILE.npz|DIR --reference=FILE --inception=DIR    scores of images
  --sweep --workdir=W --reference=FILE --inception=DIR --out=DIR
      scores of a workdir: guidance scales by latent steps, and the base model beside them""",
    define_flags=define_flags,
    required_flags=required_flags,
    load=load,
)

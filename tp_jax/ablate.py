"""Compare variants over seeds: python -m tp_jax.ablate --study=NAME --config=FILE --out=DIR."""

from typing import Annotated

from absl import flags

from tp_jax.cli import start
from tp_jax.cli.flags import Names, define, define_config, output_folder, required
from tp_jax.studies import STUDIES
from tp_jax.values import Choice, Range
from tp_jax.values.kinds import Path

SUMMARIES = "; ".join(f"{name}: {study.summary}" for name, study in STUDIES.items())
define("study", Annotated[str, Choice(*STUDIES)], None, SUMMARIES)
define_config("a config file, such as configs/quickstart.py, and fields that all variants share")
define("seeds", Annotated[int, Range(1, 10_000)], 5, "number of seeds: 0, 1, …")
define("out", Path, None, "folder for runs, scores, table and plot; several processes may share it")
define("jobs", Annotated[int, Range(1, 1_000)], 1, "number of cells that run at the same time")
define("base", Path, None, "folder with a trained base for every seed, ROOT/SEED")
define("suites", Names, (), "evaluation suites; that of the data source and validation by default")


def main() -> None:
    from tp_jax.studies.config_files import ConfigFile
    from tp_jax.studies.plan import Request
    from tp_jax.studies.run import run_study

    values = flags.FLAGS.flag_values_dict()
    run_study(
        Request(
            study=required("study"),
            config=ConfigFile.of(start.peek("config") or "", start.required_config()),
            seeds=values["seeds"],
            out=output_folder("out"),
            base=values["base"] or "",
            suites=values["suites"],
            jobs=values["jobs"],
        )
    )


if __name__ == "__main__":
    start.run(main, __doc__, required=("study", "config", "out"), processes=False)

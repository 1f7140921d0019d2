"""Analyse how a model thinks: python -m tp_jax.analyze --workdir=W [--out=DIR] [--num=1000] …"""

from absl import flags

from tp_jax.cli import start
from tp_jax.cli.flags import Integers, define, output_folder, required_path
from tp_jax.cli.sampling_flags import define_sampling_flags
from tp_jax.values.kinds import Path, Source

define("out", Path, None, "folder for the report; WORKDIR/analysis by default")
define("labels", Integers, (), "classes to sample in turn, such as 0,1,2; all classes by default")
define("prompts", str, None, "a prompt, or a file with one prompt per line; the suite's by default")
define("text", Source, None, "folder of the text encoders; the config's by default")
define("json", bool, False, "write only analysis.json, and print its path")
define_sampling_flags(flags.FLAGS, "number of samples; 1000 by default")


def main() -> None:
    from tp_jax.analysis.run import FOLDER, Analysis, analyze
    from tp_jax.sampling.prompts import read_prompts
    from tp_jax.sampling.request import request_fields

    values = flags.FLAGS.flag_values_dict()
    analyze(
        Analysis(
            out=output_folder("out") if values["out"] else required_path("workdir") / FOLDER,
            labels=values["labels"],
            prompts=() if values["prompts"] is None else read_prompts(values["prompts"]),
            only_json=values["json"],
            **request_fields(values),
        )
    )


if __name__ == "__main__":
    start.run(main, __doc__, required=("workdir",))

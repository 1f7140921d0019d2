"""Sample: python -m tp_jax.sample --workdir=W --out=FILE.npz|DIR [--labels=0,1 | --prompts=…]."""

from absl import flags

from tp_jax.cli import start
from tp_jax.cli.flags import Integers, define, required_path
from tp_jax.cli.sampling_flags import (
    define_overwrite_flag,
    define_prompt_flags,
    define_sampling_flags,
)
from tp_jax.values.kinds import Path

define("out", Path, None, "FILE.npz, or a folder for PNGs and grid.png")
define("labels", Integers, (), "classes to cycle through, such as 0,1,2; all classes by default")
define("uniform", bool, False, "choose the classes at random instead of cycling through them")
define("prompts", str, None, "a prompt, or a file with one prompt per line")
define(
    "show_thinking", bool, False, "also draw the first samples without thinking, and their experts"
)
define_sampling_flags(flags.FLAGS, "number of samples; by default one per prompt, or 64")
define_prompt_flags(flags.FLAGS)
define_overwrite_flag(flags.FLAGS)


def main() -> None:
    from tp_jax.sampling.draw import Drawing, draw_samples
    from tp_jax.sampling.prompts import read_prompts
    from tp_jax.sampling.request import request_fields

    values = flags.FLAGS.flag_values_dict()
    draw_samples(
        Drawing(
            out=required_path("out"),
            labels=values["labels"],
            uniform=values["uniform"],
            prompts=() if values["prompts"] is None else read_prompts(values["prompts"]),
            show_thinking=values["show_thinking"],
            **request_fields(values),
        )
    )


if __name__ == "__main__":
    start.run(main, __doc__, required=("workdir", "out"))

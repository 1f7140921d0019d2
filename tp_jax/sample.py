"""Sample: python -m tp_jax.sample --workdir=W --out=FILE.npz|DIR [--labels=0,1 | --prompts=…]."""

from absl import flags
from etils import epath

from tp_jax.cli import start
from tp_jax.cli.flags import integers, required
from tp_jax.cli.sampling_flags import define_prompt_flags, define_sampling_flags
from tp_jax.sampling.draw import Drawing, draw_samples
from tp_jax.sampling.prompts import read_prompts
from tp_jax.sampling.request import request_fields

flags.DEFINE_string("out", None, "FILE.npz, or a folder for PNGs and grid.png")
flags.DEFINE_list("labels", [], "classes to go round, as 0,1,2; all classes by default")
flags.DEFINE_boolean("uniform", False, "draw classes uniformly instead of going round them")
flags.DEFINE_string("prompts", None, "text, or a file with a prompt on each line")
define_sampling_flags(flags.FLAGS, "how many samples; one for each prompt, or 64, by default")
define_prompt_flags(flags.FLAGS)


def main() -> None:
    values = flags.FLAGS.flag_values_dict()
    draw_samples(
        Drawing(
            out=epath.Path(required("out")),
            labels=integers("labels"),
            uniform=values["uniform"],
            prompts=read_prompts(values["prompts"]) if values["prompts"] else (),
            **request_fields(values),
        )
    )


if __name__ == "__main__":
    start.run(main, __doc__)

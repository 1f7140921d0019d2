"""Sample: python -m tp_jax.sample --workdir=W --out=FILE.npz|DIR [--labels=0,1 | --prompts=…]."""

from absl import flags
from etils import epath

from tp_jax.cli import start
from tp_jax.cli.flags import integers, required
from tp_jax.sampling.draw import Drawing, draw_samples
from tp_jax.sampling.prompts import read_prompts

flags.DEFINE_string("workdir", None, "a folder that was trained in")
flags.DEFINE_string("out", None, "FILE.npz, or a folder for PNGs and grid.png")
flags.DEFINE_integer("num", None, "how many samples; one for each prompt, or 64, by default")
flags.DEFINE_list("labels", [], "classes to go round, as 0,1,2; all classes by default")
flags.DEFINE_string("prompts", None, "text, or a file with a prompt on each line")
flags.DEFINE_string("negative_prompt", "", "what guidance leads away from")
flags.DEFINE_integer("height", None, "of the pictures in pixels; as trained by default")
flags.DEFINE_integer("width", None, "of the pictures in pixels; as trained by default")
flags.DEFINE_integer("seed", 0, "same seed, same bytes", 0, 2**32 - 1)
flags.DEFINE_integer("batch_size", 64, "samples drawn at once; doesn't change them", 1)
flags.DEFINE_string("sampler", None, "ddpm or ddim (Gaussian), euler or heun (flow)")
flags.DEFINE_integer("sampler_steps", None, "number of sampler steps")
flags.DEFINE_float("guidance_scale", None, "1 is no guidance")
flags.DEFINE_integer("guidance_channels", None, "first channels that are guided; 0 is all")
flags.DEFINE_boolean("uniform", False, "draw classes uniformly instead of going round them")
flags.DEFINE_enum(
    "matmul_precision", None, ["default", "high", "highest"], "of matrix products, on TPUs and GPUs"
)
flags.DEFINE_enum("dtype", None, ["float32", "bfloat16"], "that the model computes in")
flags.DEFINE_string("autoencoder", None, "the folder that decodes latents; the config's by default")
flags.DEFINE_string("text", None, "the folder of the text encoders; the config's by default")
flags.DEFINE_boolean("truncate", False, "cut prompts longer than the encoder takes")
flags.DEFINE_boolean("thinking", True, "--nothinking draws with the base model alone")
flags.DEFINE_integer("latent_steps", None, "T of the recursion; that of training by default")
flags.DEFINE_integer("checkpoint", None, "train_step of the checkpoint; the newest by default")
flags.DEFINE_boolean("ema", True, "averaged parameters; --noema (or --no-ema): as trained")


def main() -> None:
    values = flags.FLAGS.flag_values_dict()
    draw_samples(
        Drawing(
            workdir=epath.Path(required("workdir")),
            out=epath.Path(required("out")),
            labels=integers("labels"),
            prompts=read_prompts(values["prompts"]) if values["prompts"] else (),
            sampler_changes={
                "sampler": values["sampler"],
                "steps": values["sampler_steps"],
                "guidance_scale": values["guidance_scale"],
                "guidance_channels": values["guidance_channels"],
            },
            **{
                name: values[name]
                for name in (
                    "num",
                    "uniform",
                    "negative_prompt",
                    "height",
                    "width",
                    "text",
                    "truncate",
                    "thinking",
                    "seed",
                    "batch_size",
                    "latent_steps",
                    "checkpoint",
                    "ema",
                    "matmul_precision",
                    "dtype",
                    "autoencoder",
                )
            },
        )
    )


if __name__ == "__main__":
    start.run(main, __doc__)

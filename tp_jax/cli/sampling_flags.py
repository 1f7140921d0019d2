"""Flags that say how a workdir draws, shared by `tp_jax.sample` and the suites of evaluations."""

from absl import flags

# absl then counts these flags as the entry's own, and lists them in its --help.
flags.disclaim_key_flags()


def define_model_flags(values: flags.FlagValues) -> None:
    """Flags of everything that draws from a workdir.

    Args:
      values: that the flags are added to.
    """

    def string(name: str, text: str) -> None:
        flags.DEFINE_string(name, None, text, flag_values=values)

    def integer(name: str, default: int | None, text: str, *bounds: int) -> None:
        flags.DEFINE_integer(name, default, text, *bounds, flag_values=values)

    def choice(name: str, choices: list[str], text: str) -> None:
        flags.DEFINE_enum(name, None, choices, text, flag_values=values)

    string("workdir", "a folder that was trained in")
    integer("checkpoint", None, "train_step of the checkpoint; the newest by default")
    integer("seed", 0, "same seed, same bytes", 0, 2**32 - 1)
    integer("batch_size", 64, "samples at once; doesn't change them", 1)
    integer("sampler_steps", None, "number of sampler steps; the config's by default")
    integer("guidance_channels", None, "first channels that are guided; 0 is all")
    choice("dtype", ["float32", "bfloat16"], "that the model computes in; the config's by default")
    choice("matmul_precision", ["default", "high", "highest"], "of matrix products on accelerators")
    string("autoencoder", "the folder that decodes latents; the config's by default")


def define_sampling_flags(values: flags.FlagValues, num: str) -> None:
    """`define_model_flags`, and those of one drawing.

    Args:
      values: that the flags are added to.
      num: help of --num: how many samples are drawn.
    """
    define_model_flags(values)
    flags.DEFINE_integer("num", None, num, flag_values=values)
    flags.DEFINE_string(
        "sampler",
        None,
        "one that fits the model, as heun; a wrong name lists them",
        flag_values=values,
    )
    flags.DEFINE_float("guidance_scale", None, "1 is no guidance", flag_values=values)
    flags.DEFINE_integer(
        "latent_steps", None, "T of the recursion; that of training by default", flag_values=values
    )
    flags.DEFINE_boolean(
        "ema", True, "averaged parameters; --noema (or --no-ema): as trained", flag_values=values
    )


def define_prompt_flags(values: flags.FlagValues) -> None:
    """Flags of drawings from prompts, and of drawing without thinking.

    Args:
      values: that the flags are added to.
    """
    flags.DEFINE_string("negative_prompt", "", "what guidance leads away from", flag_values=values)
    for side in ("height", "width"):
        flags.DEFINE_integer(
            side, None, "of the pictures in pixels; as trained by default", flag_values=values
        )
    flags.DEFINE_string(
        "text", None, "the folder of the text encoders; the config's by default", flag_values=values
    )
    flags.DEFINE_boolean(
        "truncate", False, "cut prompts longer than the encoder takes", flag_values=values
    )
    flags.DEFINE_boolean(
        "thinking", True, "--nothinking draws with the base model alone", flag_values=values
    )

"""Flags for sampling from a workdir, shared by `tp_jax.sample` and the evaluation suites."""

from absl import flags

# absl then treats these flags as the calling entry's own and lists them in its --help.
flags.disclaim_key_flags()


def define_model_flags(values: flags.FlagValues) -> None:
    """Define the flags that every command that samples from a workdir has.

    Args:
      values: the flag values to add them to.
    """

    def string(name: str, text: str) -> None:
        flags.DEFINE_string(name, None, text, flag_values=values)

    def integer(name: str, default: int | None, text: str, *bounds: int) -> None:
        flags.DEFINE_integer(name, default, text, *bounds, flag_values=values)

    def choice(name: str, choices: list[str], text: str) -> None:
        flags.DEFINE_enum(name, None, choices, text, flag_values=values)

    string("workdir", "workdir of a training run")
    integer("checkpoint", None, "train_step of the checkpoint; the newest by default")
    integer("seed", 0, "seed of the samples; the same seed gives the same bytes", 0, 2**32 - 1)
    integer("batch_size", 64, "samples per batch; doesn't change the samples", 1)
    integer("sampler_steps", None, "number of sampler steps; the config's by default")
    integer("guidance_channels", None, "number of leading channels that are guided; 0 guides all")
    choice("dtype", ["float32", "bfloat16"], "compute dtype of the model; the config's by default")
    choice(
        "matmul_precision",
        ["default", "high", "highest"],
        "precision of matrix products on accelerators",
    )
    flags.DEFINE_boolean(
        "allow_unchecked",
        False,
        "use a checkpoint whose checksums are missing or damaged, without checking its files",
        flag_values=values,
    )
    string("autoencoder", "folder of the autoencoder that decodes latents; the config's by default")


def define_sampling_flags(values: flags.FlagValues, num: str) -> None:
    """Define `define_model_flags` and the flags of one set of samples.

    Args:
      values: the flag values to add them to.
      num: help text of --num.
    """
    define_model_flags(values)
    flags.DEFINE_integer("num", None, num, flag_values=values)
    flags.DEFINE_string(
        "sampler",
        None,
        "a sampler for the model's objective, such as heun; an unknown name lists them",
        flag_values=values,
    )
    flags.DEFINE_float(
        "guidance_scale",
        None,
        "classifier-free guidance scale; 1 is no guidance",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "latent_steps",
        None,
        "number T of latent steps; as in training by default",
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "ema",
        True,
        "use the EMA parameters; --noema (or --no-ema) uses the trained ones",
        flag_values=values,
    )


def define_overwrite_flag(values: flags.FlagValues) -> None:
    """Define --overwrite, for commands that write images which a description lists.

    Args:
      values: the flag values to add it to.
    """
    flags.DEFINE_boolean(
        "overwrite",
        False,
        "replace the images of another request in --out; files that it didn't write are kept",
        flag_values=values,
    )


def define_prompt_flags(values: flags.FlagValues) -> None:
    """Define the flags for prompts, and --thinking.

    Args:
      values: the flag values to add them to.
    """
    flags.DEFINE_string(
        "negative_prompt", "", "a prompt that guidance moves away from", flag_values=values
    )
    for side in ("height", "width"):
        flags.DEFINE_integer(
            side,
            None,
            f"{side} of the images in pixels; as in training by default",
            flag_values=values,
        )
    flags.DEFINE_string(
        "text", None, "folder of the text encoders; the config's by default", flag_values=values
    )
    flags.DEFINE_boolean(
        "truncate",
        False,
        "cut prompts that are longer than the encoder accepts, with a warning",
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "thinking", True, "--nothinking samples from the base model only", flag_values=values
    )

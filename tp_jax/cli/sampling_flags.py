"""Flags for sampling from a workdir, shared by `tp_jax.sample` and the evaluation suites."""

from typing import Annotated

from absl import flags

from tp_jax.cli.flags import define
from tp_jax.values import Choice
from tp_jax.values.kinds import (
    Count,
    CountOrZero,
    Dtype,
    Images,
    LatentSteps,
    NonNegative,
    Number,
    Seed,
    Size,
    SizeOrZero,
    Source,
    Word,
)

# absl then treats these flags as the calling entry's own and lists them in its --help.
flags.disclaim_key_flags()
Precision = Annotated[str, Choice("default", "high", "highest")]


def define_workdir_flags(values: flags.FlagValues) -> None:
    """Define the flags that every command that loads the model of a workdir has.

    Args:
      values: the flag values to add them to.
    """
    for name, annotation, default, text in (
        ("workdir", Source, None, "workdir of a training run, or an exported model"),
        (
            "checkpoint", CountOrZero, None,
            "train_step of the checkpoint; the newest by default",
        ),
        ("batch_size", Images, 64, "samples per batch; doesn't change the samples"),
        ("dtype", Dtype, None, "compute dtype of the model; the config's by default"),
        ("matmul_precision", Precision, None, "precision of matrix products on accelerators"),
        (
            "allow_unchecked", bool, False,
            "use a checkpoint whose checksums are missing or damaged, without checking its files",
        ),
        (
            "autoencoder", Source, None,
            "folder of the autoencoder that decodes latents; the config's by default",
        ),
    ):  # fmt: skip
        define(name, annotation, default, text, values)


def define_model_flags(values: flags.FlagValues) -> None:
    """Define the flags that every command that samples from a workdir has.

    Args:
      values: the flag values to add them to.
    """
    define_workdir_flags(values)
    for name, annotation, default, text in (
        ("seed", Seed, 0, "seed of the samples; the same seed gives the same bytes"),
        ("sampler_steps", Count, None, "number of sampler steps; the config's by default"),
        (
            "guidance_channels", SizeOrZero, None,
            "number of leading channels that are guided; 0 guides all",
        ),
    ):  # fmt: skip
        define(name, annotation, default, text, values)


def define_variant_flags(values: flags.FlagValues) -> None:
    """Define --latent_steps, --halting_epsilon and --ema.

    Args:
      values: the flag values to add them to.
    """
    text = "number T of latent steps; as in training by default"
    define("latent_steps", LatentSteps, None, text, values)
    text = (
        "a token halts when it moves by this part of its length or less; by default tokens halt "
        "as the config says"
    )
    define("halting_epsilon", NonNegative, None, text, values)
    text = "use the EMA parameters; --noema (or --no-ema) uses the trained ones"
    define("ema", bool, True, text, values)


def define_thinking_flag(values: flags.FlagValues) -> None:
    """Define --thinking.

    Args:
      values: the flag values to add it to.
    """
    define("thinking", bool, True, "--nothinking uses the base model only", values)


def define_sampling_flags(values: flags.FlagValues, num: str) -> None:
    """Define `define_model_flags` and the flags of one set of samples.

    Args:
      values: the flag values to add them to.
      num: help text of --num.
    """
    define_model_flags(values)
    define_variant_flags(values)
    for name, annotation, default, text in (
        ("num", Images, None, num),
        (
            "sampler", Word, None,
            "a sampler for the model's objective, such as heun; an unknown name lists them",
        ),
        ("guidance_scale", Number, None, "classifier-free guidance scale; 1 is no guidance"),
    ):  # fmt: skip
        define(name, annotation, default, text, values)


def define_overwrite_flag(values: flags.FlagValues) -> None:
    """Define --overwrite, for commands that write images which a description lists.

    Args:
      values: the flag values to add it to.
    """
    text = "replace the images of another request in --out; files that it didn't write are kept"
    define("overwrite", bool, False, text, values)


def define_prompt_flags(values: flags.FlagValues) -> None:
    """Define the flags for prompts, and --thinking.

    Args:
      values: the flag values to add them to.
    """
    define("negative_prompt", str, "", "a prompt that guidance moves away from", values)
    for side in ("height", "width"):
        text = f"{side} of the images in pixels; as in training by default"
        define(side, Size, None, text, values)
    define("text", Source, None, "folder of the text encoders; the config's by default", values)
    text = "cut prompts that are longer than the encoder accepts, with a warning"
    define("truncate", bool, False, text, values)
    define_thinking_flag(values)

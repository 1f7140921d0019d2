"""Flags that all suites with text prompts share."""

from absl import flags

from tp_jax.cli.sampling_flags import (
    define_overwrite_flag,
    define_prompt_flags,
    define_sampling_flags,
)

flags.disclaim_key_flags()


def define_drawing_flags(values: flags.FlagValues, samples: int) -> None:
    """Define the flags for generating images, except --out and --prompts.

    Args:
      values: the flags are added to these.
      samples: default number of images per prompt.
    """
    define_sampling_flags(values, "number of prompts, the first ones; all by default")
    define_prompt_flags(values)
    define_overwrite_flag(values)
    flags.DEFINE_boolean("make", False, "generate the images into --out", flag_values=values)
    flags.DEFINE_integer(
        "samples_per_prompt", None, f"number of images per prompt; {samples} by default",
        flag_values=values,
    )  # fmt: skip

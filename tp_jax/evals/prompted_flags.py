"""Flags that all suites with text prompts share."""

from absl import flags

from tp_jax.cli.flags import define
from tp_jax.cli.sampling_flags import (
    define_overwrite_flag,
    define_prompt_flags,
    define_sampling_flags,
)
from tp_jax.values.kinds import Images

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
    define("make", bool, False, "generate the images into --out", values)
    text = f"number of images per prompt; {samples} by default"
    define("samples_per_prompt", Images, None, text, values)

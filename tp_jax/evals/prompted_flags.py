"""The flags that the suites with prompts share."""

from absl import flags

from tp_jax.cli.sampling_flags import define_prompt_flags, define_sampling_flags

flags.disclaim_key_flags()


def define_drawing_flags(values: flags.FlagValues, samples: int) -> None:
    """Flags of drawing the suite's images; the suite itself defines --out and --prompts."""
    define_sampling_flags(values, "the first so many prompts; all by default")
    define_prompt_flags(values)
    flags.DEFINE_boolean("make", False, "draw the images into --out", flag_values=values)
    flags.DEFINE_integer(
        "samples_per_prompt", None, f"images of each prompt; {samples} by default",
        flag_values=values,
    )  # fmt: skip

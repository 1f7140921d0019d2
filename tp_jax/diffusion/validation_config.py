"""The fields of `config.validation`. This module doesn't import jax, as `config.py` next to it."""

import dataclasses

from tp_jax.values.kinds import CountOrZero, Decay, Images, Path, Seed, Size, Word


@dataclasses.dataclass(frozen=True)
class ValidationConfig:
    """The fields of `config.validation`: the denoising loss of the average on held-out examples.

    The loss depends on this section and not on `config.seed`, so that runs can be compared example
    by example.

    Attributes:
      every_steps: train steps between two validations; 0 validates only with tp_jax.evaluate.
      num: number of examples; fewer if there are fewer.
      times: noise levels at which each example is denoised.
      fraction: share of the records of `config.data` that training leaves out; 0 trains on all.
      split, dir: another split or folder of the same source; "" is that of training.
      seed: decides which records are held out, and the noise.
      batch_size: examples per batch in training; doesn't change the loss.
    """

    every_steps: CountOrZero = 0
    num: Images = 512
    times: Size = 8
    fraction: Decay = 0.0
    split: Word = ""
    dir: Path = ""
    seed: Seed = 0
    batch_size: Images = 64

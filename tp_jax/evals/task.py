"""What a suite offers to programs that sample a model themselves, such as `tp_jax.analyze`."""

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from tp_jax.models.parameters import Params
from tp_jax.sampling.generator import Generator


@dataclasses.dataclass(frozen=True)
class Judgement:
    """Verdicts on n samples.

    Attributes:
      scores: [n] float64 in 0 … 1, where 1 is right.
      texts: for each sample, what was asked for and what was wrong.
      pictures: for each sample, what was judged, uint8 [H, W, 3]; empty if it is the image itself.
    """

    scores: np.ndarray
    texts: Sequence[str]
    pictures: Sequence[np.ndarray]


@dataclasses.dataclass(frozen=True)
class Task(abc.ABC):
    """Samples that a suite can judge one by one.

    Attributes:
      score_name: what the mean of the scores is, as a share of 1.
      conditions: the model's condition, arrays with a leading axis of K different conditions.
      texts: [K] the text of each condition; empty if the model takes none.
    """

    score_name: ClassVar[str]
    conditions: Any
    texts: tuple[str, ...]

    @abc.abstractmethod
    def judge(
        self, generator: Generator, params: Params, images: np.ndarray, seed: int
    ) -> Judgement | None:
        """Judge a sample of each of the first n conditions.

        Args:
          generator: of the images; suites that need more than images sample with it.
          params: parameters of its model.
          images: uint8 [n, H, W, C], a sample of each of the first n conditions, n ≤ K.
          seed: seed of further samples.

        Returns:
          The verdicts; None if the suite can't judge this model.
        """

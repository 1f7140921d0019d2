"""What a text encoder is. B prompts, L text tokens."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np


@dataclasses.dataclass(frozen=True)
class TextSpace:
    """What the model, the data and caches have to know of a text encoder.

    Attributes:
      identity: of the encoder, its weights and its settings.
      tokens: number L of text tokens.
      width: features of a text token.
      pooled_width: features of the pooled text.
    """

    identity: str
    tokens: int
    width: int
    pooled_width: int


class TextEncoder(Protocol):
    """Turns prompts into what a model attends to; a prompt's numbers ignore its batch-mates."""

    @property
    def space(self) -> TextSpace:
        """What it encodes into."""
        ...

    def check(self, prompt: str) -> None:
        """Raises a UserError if the prompt is longer than the encoder takes."""
        ...

    def encode(self, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """{"text": [B, L, width], "pooled": [B, pooled_width]} float32.

        Raises:
          UserError: as `check`.
        """
        ...


@dataclasses.dataclass(frozen=True)
class ZeroNull:
    """An encoder but for the empty prompt, which is zeros."""

    encoder: TextEncoder

    @property
    def space(self) -> TextSpace:
        """Not the encoder's own, because a model learns the empty prompt as well."""
        space = self.encoder.space
        return dataclasses.replace(space, identity=f"null zeros, {space.identity}")

    def check(self, prompt: str) -> None:
        """As `TextEncoder`."""
        self.encoder.check(prompt)

    def encode(self, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """As `TextEncoder`."""
        empty = np.array([not prompt for prompt in prompts], bool)
        found = self.encoder.encode(prompts)
        return {
            name: np.where(empty.reshape(-1, *(1,) * (array.ndim - 1)), np.float32(0), array)
            for name, array in found.items()
        }

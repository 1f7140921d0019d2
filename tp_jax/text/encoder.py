"""The interface of text encoders. B prompts, L text tokens."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np


@dataclasses.dataclass(frozen=True)
class TextSpace:
    """Shape and identity of the embeddings that a text encoder computes.

    The model checks the sizes; workdirs and prepared data store the whole record, so that
    embeddings of two different encoders are never mixed.

    Attributes:
      identity: hash of the encoder's weights and settings.
      tokens: number L of text tokens.
      width: features per text token.
      pooled_width: features of the pooled embedding.
    """

    identity: str
    tokens: int
    width: int
    pooled_width: int


class TextEncoder(Protocol):
    """Encodes prompts; the embedding of a prompt doesn't depend on the rest of the batch."""

    @property
    def space(self) -> TextSpace:
        """Shape and identity of the embeddings."""
        ...

    def check(self, prompt: str) -> None:
        """Raise a UserError if the encoder can't encode the prompt: it is too long, say."""
        ...

    def encode(self, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """Encode B prompts.

        Returns:
          {"text": [B, L, width], "pooled": [B, pooled_width]}, float32.

        Raises:
          UserError: `check` refuses one of the prompts.
        """
        ...


@dataclasses.dataclass(frozen=True)
class ZeroNullEncoder:
    """Wrap an encoder so that the empty prompt is encoded as zeros (`config.text.null="zeros"`)."""

    encoder: TextEncoder

    @property
    def space(self) -> TextSpace:
        """Space of the wrapped encoder, under an identity of its own.

        A model is trained on the empty prompt too, so it must not be sampled with the other null.
        """
        space = self.encoder.space
        return dataclasses.replace(space, identity=f"null zeros, {space.identity}")

    def check(self, prompt: str) -> None:
        """Raise a UserError if the wrapped encoder refuses the prompt."""
        self.encoder.check(prompt)

    def encode(self, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """Encode B prompts; see `TextEncoder.encode`."""
        empty = np.array([not prompt for prompt in prompts], bool)
        encoded = self.encoder.encode(prompts)
        return {
            name: np.where(empty.reshape(-1, *(1,) * (array.ndim - 1)), np.float32(0), array)
            for name, array in encoded.items()
        }

"""A text encoder without weights: one-hot words, each beside the one-hot of its place.

The model's own projection of them is then a learned embedding of words and of places. For
pictures whose captions are of a few words, as those of `tp_jax.worlds.shapes`.
"""

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np

from tp_jax.messages.errors import UserError
from tp_jax.text.encoder import TextSpace


@dataclasses.dataclass(frozen=True)
class WordEncoder:
    """V words, of which up to L in a prompt.

    Attributes:
      words: the vocabulary; case and commas of prompts are ignored.
      tokens: L; what a prompt leaves free is a token without a word.
    """

    words: tuple[str, ...]
    tokens: int

    @property
    def space(self) -> TextSpace:
        """Text of width V + L; the pooled text counts each word."""
        listed = " ".join((*self.words, str(self.tokens)))
        identity = hashlib.sha256(listed.encode()).hexdigest()
        return TextSpace(identity, self.tokens, len(self.words) + self.tokens, len(self.words))

    def check(self, prompt: str) -> None:
        """Raises a UserError if the prompt is too long or has an unknown word."""
        self._indices(prompt)

    def _indices(self, prompt: str) -> list[int]:
        found = prompt.lower().replace(",", " ").split()
        if len(found) > self.tokens:
            raise UserError(
                f"the prompt {prompt!r} has {len(found)} words, the encoder takes {self.tokens}: "
                f"shorten it"
            )
        for word in found:
            if word not in self.words:
                raise UserError(
                    f"the prompt {prompt!r}: {word!r} is no word of this encoder, which knows "
                    f"{', '.join(self.words)}"
                )
        return [self.words.index(word) for word in found]

    def encode(self, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """{"text": [B, L, V + L], "pooled": [B, V]} float32, as `TextEncoder`."""
        width = len(self.words) + self.tokens
        text = np.zeros((len(prompts), self.tokens, width), np.float32)
        text[:, :, len(self.words) :] = np.eye(self.tokens)
        pooled = np.zeros((len(prompts), len(self.words)), np.float32)
        for row, prompt in enumerate(prompts):
            for place, word in enumerate(self._indices(prompt)):
                text[row, place, word] = 1
                pooled[row, word] += 1
        return {"text": text, "pooled": pooled}

"""A text encoder without weights: each token is a one-hot word and a one-hot position.

The model's linear projection of these tokens is then a learned word and position embedding. Meant
for captions with a vocabulary of a few words, such as those of `tp_jax.worlds.shapes`.
"""

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np

from tp_jax.messages.errors import UserError
from tp_jax.text.encoder import TextSpace


@dataclasses.dataclass(frozen=True)
class WordEncoder:
    """Encoder of prompts with up to L words from a vocabulary of V words.

    Case and commas are ignored. A prompt of fewer than L words is padded with tokens that have a
    position but no word.

    Attributes:
      words: the vocabulary, V words.
      tokens: L, the largest number of words in a prompt.

    Example:
      >>> encoder = WordEncoder(("a", "red", "cross"), tokens=4)
      >>> encoded = encoder.encode(["a red cross"])
      >>> encoded["text"].shape
      (1, 4, 7)
      >>> encoded["text"][0, 1].astype(int).tolist()  # Word 1 at position 1.
      [0, 1, 0, 0, 1, 0, 0]
      >>> encoded["pooled"].astype(int).tolist()
      [[1, 1, 1]]
    """

    words: tuple[str, ...]
    tokens: int

    @property
    def space(self) -> TextSpace:
        """V + L features per token, and V pooled features, the number of times each word occurs."""
        listed = " ".join((*self.words, str(self.tokens)))
        identity = hashlib.sha256(listed.encode()).hexdigest()
        return TextSpace(identity, self.tokens, len(self.words) + self.tokens, len(self.words))

    def check(self, prompt: str) -> None:
        """Raise a UserError if the prompt is too long or has an unknown word."""
        self._indices(prompt)

    def _indices(self, prompt: str) -> list[int]:
        words = prompt.lower().replace(",", " ").split()
        if len(words) > self.tokens:
            raise UserError(
                f"the prompt {prompt!r} has {len(words)} words, but the encoder accepts at most "
                f"{self.tokens}: shorten it"
            )
        for word in words:
            if word not in self.words:
                raise UserError(
                    f"the prompt {prompt!r}: the encoder doesn't know the word {word!r}; it "
                    f"knows {', '.join(self.words)}"
                )
        return [self.words.index(word) for word in words]

    def encode(self, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """Encode B prompts as {"text": [B, L, V + L], "pooled": [B, V]}, float32."""
        width = len(self.words) + self.tokens
        text = np.zeros((len(prompts), self.tokens, width), np.float32)
        text[:, :, len(self.words) :] = np.eye(self.tokens)
        pooled = np.zeros((len(prompts), len(self.words)), np.float32)
        for row, prompt in enumerate(prompts):
            for position, word in enumerate(self._indices(prompt)):
                text[row, position, word] = 1
                pooled[row, word] += 1
        return {"text": text, "pooled": pooled}

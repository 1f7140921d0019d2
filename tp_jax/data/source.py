"""The interface of a data source."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from tp_jax.data.transforms import DecodeImage, Records
from tp_jax.pictures.decoding import BACKGROUND
from tp_jax.text import TextSpace

# The parts of validation examples: such as training sees, and what it holds out on purpose.
SEEN, UNSEEN = "seen", "unseen"
# (record, random generator for this example) -> {"x": …, "condition": …}
Decode = Callable[[Any, np.random.Generator], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Source:
    """A data source: random access to records, and a decoder from a record to an example.

    With the default decoder, a record is {"image": encoded image bytes, "label": int}. A subclass
    may have other records, and overrides `decoder`, `condition_kind` and `pixels` accordingly.

    Attributes:
      records: the records; supports `len(records)` and `records[i]`.
      image_size: side of the square examples; None if images have any size and are cropped.
      channels: channels of the examples; 1 or 3 for images.
      class_names: names of the labels; empty if there are no classes.
      background: the colour behind transparent pixels; the pipeline sets `config.data.background`.
    """

    records: Records
    image_size: int | None
    channels: int
    class_names: tuple[str, ...]
    background: str = dataclasses.field(default=BACKGROUND, kw_only=True)
    # True if examples are pixels, which an autoencoder may encode; False if the model diffuses the
    # examples as they are.
    pixels: ClassVar[bool] = True
    # The condition of an example: "label"; "frame" (a frame and a label); "caption" (a string that
    # still has to be encoded); or "text" (an encoded caption).
    condition_kind: ClassVar[str] = "label"
    # Advice in the error message for a record that can't be read.
    remedy: ClassVar[str] = "repair or remove it"

    @property
    def text_space(self) -> TextSpace | None:
        """The text space of the encoder, if examples hold encoded text and the encoder is known."""
        return None

    @property
    def identity(self) -> dict[str, Any] | None:
        """The header of prepared data, with `plan`, `mean` and `std`; None for other sources."""
        return None

    def decoder(self, size: int, flip: bool) -> Decode:
        """Return the function from a record to an example.

        Args:
          size: side of the examples.
          flip: mirror an example left to right with probability one half.
        """
        return DecodeImage(size, self.channels, flip, self.background)

    def validation_sources(self, seed: int) -> "dict[str, Source]":
        """Return sources of examples for validation, if this source generates its examples.

        Args:
          seed: `config.validation.seed`; another one gives other examples.

        Returns:
          `SEEN`: new examples of the distribution of training; and `UNSEEN`, if training holds out
          something on purpose, such as combinations of words. Empty if the records are stored:
          `config.validation` then says which of them are for validation.
        """
        return {}

    def record_name(self, index: int) -> str:
        """Return a name of a record that lets a user find it, such as its file, for messages."""
        return f"record {index}"

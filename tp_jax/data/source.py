"""What a data source is."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from tp_jax.data.transforms import DecodeImage, Records
from tp_jax.text import TextSpace

# (record, generator of its random draws) -> {"x", "condition"}
Decode = Callable[[Any, np.random.Generator], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Source:
    """Random access to records {"image": encoded image bytes, "label": int or "captions": [str]}.

    Attributes:
      records: `len` and `[i]`.
      image_size: side of the square images, or None where they vary and are cropped.
      channels: 1 or 3.
      class_names: of the labels; none where there are captions.
    """

    records: Records
    image_size: int | None
    channels: int
    class_names: tuple[str, ...]
    # Otherwise examples are what the model diffuses, whether it diffuses pixels or latents.
    pixels: ClassVar[bool] = True
    # What examples' condition is: a "label"; a "frame", with a label; a "caption", yet to be
    # encoded; or "text", encoded.
    gives: ClassVar[str] = "label"
    # For a record that can't be read.
    remedy: ClassVar[str] = "mend it"

    @property
    def text_space(self) -> TextSpace | None:
        """Of what encoded the text, where the source gives that and it is known."""
        return None

    def decoder(self, size: int, flip: bool) -> Decode:
        """What makes examples of `size` a side of the records, mirrored half the time if asked."""
        return DecodeImage(size, self.channels, flip)

    def record_name(self, index: int) -> str:
        """How a person finds a record that can't be read."""
        return f"record {index}"

"""What a data source is."""

import dataclasses
from collections.abc import Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Source:
    """Random access to records {"image": encoded image bytes, "label": int}.

    Attributes:
      records: `len` and `[i]`.
      image_size: side of the square images, or None where they vary and are cropped.
      channels: 1 or 3.
      class_names: of the labels.
    """

    records: Sequence[dict[str, Any]]
    image_size: int | None
    channels: int
    class_names: tuple[str, ...]

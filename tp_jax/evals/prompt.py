"""A prompt of a text-to-image benchmark."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One prompt of a benchmark.

    Attributes:
      index: position in the benchmark, from 0.
      name: unique name used for the prompt's files: "00042" in GenEval, "partiprompts42" in
        DPG-Bench.
      text: the text that the images are generated from.
      metadata: the benchmark's own fields, such as GenEval's rules; empty in DPG-Bench.
    """

    index: int
    name: str
    text: str
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)

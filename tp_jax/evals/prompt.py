"""A prompt of a text-to-image benchmark."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One prompt.

    Attributes:
      index: its place in the benchmark, from 0.
      name: unique; names its files: "00042" in GenEval, "partiprompts42" in DPG-Bench.
      text: what is drawn.
      metadata: what its rules are, as the benchmark gives them; empty in DPG-Bench.
    """

    index: int
    name: str
    text: str
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)

"""The fields of `config.shapes`."""

import dataclasses
from typing import Annotated

from tp_jax.values import Choice, check_fields
from tp_jax.worlds.shapes.scenes import DIFFICULTIES


@dataclasses.dataclass(frozen=True)
class ShapesConfig:
    """The fields of `config.shapes`.

    Attributes:
      difficulty: a key of `DIFFICULTIES`. The default is that of workdirs without this field.

    Raises:
      UserError: there is no such difficulty; the message names the field.
    """

    difficulty: Annotated[str, Choice(*DIFFICULTIES)] = "hard"

    def __post_init__(self) -> None:
        check_fields(self, "config.shapes.")

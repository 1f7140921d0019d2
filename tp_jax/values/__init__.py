"""What values a config field or a flag may have, declared by its type annotation.

    steps: Annotated[int, Range(1, 1000)] = 250
    spacing: Annotated[str, Choice("even", "stride")] = "even"
    guidance_interval: Annotated[tuple[float, float], Range(0, 1), Ascending()] = (0.0, 1.0)

The same annotations check the fields of dataclasses, of a config, flags, and the arguments of
Python functions. `kinds` has the annotations that many of them share.
"""

from tp_jax.values.allowed import Ascending, Choice, Range, Text, annotations, check_fields, checked

__all__ = ["Ascending", "Choice", "Range", "Text", "annotations", "check_fields", "checked"]

"""Data sources and the input pipeline; see README.md in this folder."""

from tp_jax.data.pipeline import (
    LatentSpace,
    Source,
    abstract_batch,
    check_text,
    encodes_on_the_fly,
    example_conditions,
    make_iterator,
    open_source,
    open_text,
)

__all__ = [
    "LatentSpace",
    "Source",
    "abstract_batch",
    "check_text",
    "encodes_on_the_fly",
    "example_conditions",
    "make_iterator",
    "open_source",
    "open_text",
]

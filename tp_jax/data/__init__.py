"""Data sources and the input pipeline; see README.md in this folder."""

from tp_jax.data.held_out import held_out_part, training_part
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
from tp_jax.data.source import SEEN, UNSEEN
from tp_jax.data.validation import ValidationExamples, open_validation

__all__ = [
    "SEEN",
    "UNSEEN",
    "LatentSpace",
    "Source",
    "ValidationExamples",
    "abstract_batch",
    "check_text",
    "encodes_on_the_fly",
    "example_conditions",
    "held_out_part",
    "make_iterator",
    "open_source",
    "open_text",
    "open_validation",
    "training_part",
]

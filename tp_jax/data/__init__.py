"""Data sources and the input pipeline."""

from tp_jax.data.pipeline import (
    LatentSpace,
    Source,
    encodes_on_the_fly,
    make_iterator,
    open_source,
)

__all__ = ["LatentSpace", "Source", "encodes_on_the_fly", "make_iterator", "open_source"]

"""Data sources and the input pipeline."""

from tp_jax.data.pipeline import Source, make_iterator, open_source

__all__ = ["Source", "make_iterator", "open_source"]

"""Recursive sparse reasoning (arXiv 2604.25299): gate, experts, dispatch and the recursion.

Only the config is imported here, because the other modules import jax.
"""

from tp_jax.thinking.config import ThinkingConfig

__all__ = ["ThinkingConfig"]

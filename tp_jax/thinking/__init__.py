"""Recursive sparse reasoning (arXiv 2604.25299): gate, experts, dispatch and the recursion."""

from tp_jax.thinking.config import ThinkingConfig
from tp_jax.thinking.gate import RoutingNoise
from tp_jax.thinking.layer import (
    Conditioning,
    InPlaceOfAttention,
    Thinking,
    ThinkingLayer,
    ThinkingOptions,
    Thought,
)

__all__ = [
    "Conditioning",
    "InPlaceOfAttention",
    "RoutingNoise",
    "Thinking",
    "ThinkingConfig",
    "ThinkingLayer",
    "ThinkingOptions",
    "Thought",
]

"""Sampling by `config.sampling`, without decoding, of the base and with thinking."""

from collections.abc import Iterator

from tp_jax.performance.contenders import sample_contender
from tp_jax.performance.measure import Group
from tp_jax.performance.options import BenchOptions
from tp_jax.performance.peers import base_and_thinking


def groups(options: BenchOptions) -> Iterator[Group]:
    """Yield one group: the base, its peers, and the model with its thinking layers."""
    title = f"sampling, {options.config.sampling.steps} steps"
    yield base_and_thinking("sample", title, sample_contender, options)

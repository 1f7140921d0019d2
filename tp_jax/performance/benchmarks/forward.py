"""The forward pass, of the base and with thinking; beside PyTorch's."""

from collections.abc import Iterator

from tp_jax.performance.contenders import forward_contender
from tp_jax.performance.measure import Group
from tp_jax.performance.options import BenchOptions
from tp_jax.performance.peers import base_and_thinking


def groups(options: BenchOptions) -> Iterator[Group]:
    """Yield one group: the base, its peers, and the model with its thinking layers."""
    yield base_and_thinking("forward", "forward pass", forward_contender, options)

"""The forward pass, of the base and with thinking; beside PyTorch's."""

from collections.abc import Iterator

from tp_jax.performance.contenders import forward_contender, plain
from tp_jax.performance.measure import Group
from tp_jax.performance.options import BenchOptions
from tp_jax.performance.peers import peer_contenders

BASE, THINKING = "base", "with thinking"


def groups(options: BenchOptions) -> Iterator[Group]:
    """Yield one group: the base, its peers, and the model with its thinking layers."""
    config, base = options.config, plain(options.config)
    contenders = [forward_contender(BASE, base)]
    contenders += peer_contenders("forward", base, options, compare_to=(BASE,))
    if config.model.thinking.layers:
        contenders.append(forward_contender(THINKING, config, compare_to=(BASE,)))
    yield Group("forward pass", tuple(contenders))

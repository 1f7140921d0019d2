"""Sampling by `config.sampling`, without decoding, of the base and with thinking."""

from collections.abc import Iterator

from tp_jax.performance.contenders import plain, sample_contender
from tp_jax.performance.measure import Group
from tp_jax.performance.options import BenchOptions
from tp_jax.performance.peers import peer_contenders

BASE, THINKING = "base", "with thinking"


def groups(options: BenchOptions) -> Iterator[Group]:
    """Yield one group: the base, its peers, and the model with its thinking layers."""
    config, base = options.config, plain(options.config)
    contenders = [sample_contender(BASE, base)]
    contenders += peer_contenders("sample", base, options, compare_to=(BASE,))
    if config.model.thinking.layers:
        contenders.append(sample_contender(THINKING, config, compare_to=(BASE,)))
    yield Group(f"sampling, {config.sampling.steps} steps", tuple(contenders))

"""Train steps: all weights of the base, thinking only, and plain LoRA; beside PyTorch's."""

from collections.abc import Iterator

from tp_jax.performance.contenders import changed, plain, train_contender
from tp_jax.performance.measure import Group
from tp_jax.performance.options import BenchOptions
from tp_jax.performance.peers import peer_contenders

ALL, THINKING, LORA = "all weights", "thinking only", "plain LoRA"


def groups(options: BenchOptions) -> Iterator[Group]:
    """Yield one group: the base with all weights, its peers, and what thinking trains alone."""
    config, base = options.config, plain(options.config)
    contenders = [train_contender(ALL, base)]
    contenders += peer_contenders("train", base, options, compare_to=(ALL,))
    if config.model.thinking.layers:
        # With one expert and one latent step there is nothing to choose: LoRA without a gate.
        plain_lora = {"experts": 1, "latent_steps": 1, "latent_steps_range": (), "gate": "first"}
        lora = changed(config, "thinking", **plain_lora)
        thinking = changed(config, "thinking")
        contenders += [
            train_contender(LORA, lora, compare_to=(ALL,)),
            train_contender(THINKING, thinking, compare_to=(ALL, LORA)),
        ]
    yield Group("train step", tuple(contenders))

"""Analytic FLOPs of a training step: matrix products, a multiply-add counted as two.

Compilers count the body of a scan once, so their own figures are of no use here.
"""

import dataclasses

from tp_jax.models.config import TransformerConfig, attention_flops
from tp_jax.models.dit_config import DiTConfig
from tp_jax.thinking.config import ThinkingConfig


def thinking_flops(config: TransformerConfig) -> tuple[float, float]:
    """What thinking adds to one block, forward, per sample: (trained part, attention).

    The trained part, gate and chosen experts, has weight gradients; attention has none.
    """
    thinking: ThinkingConfig = config.thinking
    n, d, steps = config.tokens, config.width, thinking.latent_steps
    text = config.text.tokens if config.text else 0
    experts = 12 * d * thinking.rank
    gate = 0
    if thinking.gate == "learned":
        projection = 2 * d * thinking.gate_width if "token" in thinking.gate_inputs else 0
        gate = projection + 2 * thinking.gate_width * thinking.experts
    extra_base = 6 * n * d**2 if thinking.base_every_step else 0
    attention = (steps - 1) * (attention_flops(n + text, d) + extra_base)
    return steps * n * (experts + gate), attention


def forward_flops(config: TransformerConfig) -> float:
    """The whole model, forward, per sample."""
    trained, attention = thinking_flops(config)
    blocks = sum(config.block_flops(layer) for layer in range(config.depth))
    return blocks + len(config.thinking.layers) * (trained + attention) + _ends_flops(config)


def decoding_flops(config: TransformerConfig) -> float:
    """What decoding the latent steps before the last adds, forward, per sample: 0 without a frame.

    Each goes through the thinking block's own projection and MLP, the blocks after it and the head.
    The blocks before it, which run a second time for all of them, aren't counted.
    """
    if not isinstance(config, DiTConfig) or config.takes != "frame":
        return 0.0
    (layer,) = config.thinking.layers
    n, d = config.tokens, config.width
    own = (2 + 4 * config.mlp_ratio) * n * d**2
    later = sum(config.block_flops(i) for i in range(layer + 1, config.depth))
    head = 2 * n * d * config.patch**2 * config.out_channels
    return (config.thinking.latent_steps - 1) * (own + later + head)


def _ends_flops(config: TransformerConfig) -> float:
    patch = config.patch**2
    ends = 2 * config.tokens * config.width * patch * (config.channels + config.out_channels)
    return ends + config.embedding_flops()


def train_step_flops(config: TransformerConfig, batch_size: int, trainable: str) -> float:
    """Forward and backward of one update; recomputation under remat isn't counted.

    With `trainable="thinking"` gradients flow back to the first thinking block only, and the
    base's weights need none. A model that is given a frame takes 1 … T latent steps alike often.
    """
    if config.takes != "frame":
        return _update_flops(config, batch_size, trainable)
    counts = [
        _update_flops(
            dataclasses.replace(
                config, thinking=dataclasses.replace(config.thinking, latent_steps=steps)
            ),
            batch_size,
            trainable,
        )
        for steps in range(1, config.thinking.latent_steps + 1)
    ]
    return sum(counts) / len(counts)


def _update_flops(config: TransformerConfig, batch_size: int, trainable: str) -> float:
    forward = forward_flops(config) + decoding_flops(config)
    if trainable == "all":
        return 3 * batch_size * forward
    first = min(config.thinking.layers)
    trained, attention = thinking_flops(config)
    behind = sum(config.block_flops(layer) for layer in range(first, config.depth))
    thinking = len(config.thinking.layers) * (2 * trained + attention)
    return batch_size * (forward + behind + decoding_flops(config) + thinking)

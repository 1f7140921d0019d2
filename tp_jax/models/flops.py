"""Analytic FLOPs of a train step: those of matrix products, with two FLOPs per multiply-add.

The counts that XLA reports are not used, because XLA counts the body of a scan only once.
"""

import dataclasses

from tp_jax.models.config import TransformerConfig, attention_flops
from tp_jax.models.dit_config import DiTConfig
from tp_jax.thinking.config import ThinkingConfig


def thinking_flops(config: TransformerConfig) -> tuple[float, float]:
    """Return the FLOPs that thinking adds to one block, forward, per sample.

    Returns:
      (FLOPs of the gate and the chosen experts, FLOPs of attention). They are separate because
      only the first have weights, and so weight gradients.
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
    """Return the FLOPs of the whole model, forward, per sample."""
    trained, attention = thinking_flops(config)
    blocks = sum(config.block_flops(layer) for layer in range(config.depth))
    return (
        blocks
        + len(config.thinking.layers) * (trained + attention)
        + _embedding_and_final_flops(config)
    )


def decoding_flops(config: TransformerConfig) -> float:
    """Return the FLOPs of decoding the intermediate latent steps, forward, per sample.

    They are decoded only by models conditioned on a frame; for others this is 0. Each latent step
    goes through the output projection and MLP of the thinking block, the later blocks and the final
    layer. The earlier blocks, which run once more for all of them together, are not counted.
    """
    if not isinstance(config, DiTConfig) or config.condition_kind != "frame":
        return 0.0
    (layer,) = config.thinking.layers
    n, d = config.tokens, config.width
    own = (2 + 4 * config.mlp_ratio) * n * d**2
    later = sum(config.block_flops(i) for i in range(layer + 1, config.depth))
    head = 2 * n * d * config.patch**2 * config.out_channels
    return (config.thinking.latent_steps - 1) * (own + later + head)


def _embedding_and_final_flops(config: TransformerConfig) -> float:
    """Return the FLOPs of all embeddings and the final layer, forward, per sample."""
    patch = config.patch**2
    patches = 2 * config.tokens * config.width * patch * (config.channels + config.out_channels)
    return patches + config.embedding_flops()


def train_step_flops(config: TransformerConfig, batch_size: int, trainable: str) -> float:
    """Return the FLOPs of one train step, forward and backward, without remat's recomputation.

    With `trainable="thinking"`, the backward pass ends at the first thinking block, and the base
    has no weight gradients. A model conditioned on a frame trains 1 … T latent steps equally often,
    so the result is the mean over them.

    Args:
      config: of the model.
      batch_size: global batch size.
      trainable: `config.train.trainable`.
    """
    if config.condition_kind != "frame":
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
    # Activation gradients of the blocks that the backward pass goes through.
    blocks = sum(config.block_flops(layer) for layer in range(first, config.depth))
    thinking = len(config.thinking.layers) * (2 * trained + attention)
    return batch_size * (forward + blocks + decoding_flops(config) + thinking)

"""Analytic FLOPs of a train step: those of matrix products, with two FLOPs per multiply-add.

The counts that XLA reports are not used, because XLA counts the body of a scan only once.
"""

import dataclasses

from tp_jax.models.config import TransformerConfig, attention_flops
from tp_jax.models.dit_config import DiTConfig
from tp_jax.thinking.config import ThinkingConfig


def thinking_flops(config: TransformerConfig) -> tuple[float, float, float]:
    """Return the FLOPs that thinking adds to one block, forward, per sample.

    Returns:
      (FLOPs of the gate and the chosen experts, of further uses of the base projection, and of
      attention). They are separate because their gradients cost differently: the first have trained
      weights, the second may have frozen ones, and attention has none.
    """
    thinking: ThinkingConfig = config.thinking
    n, d, steps = config.tokens, config.width, thinking.latent_steps
    text = config.text.tokens if config.text else 0
    experts = 12 * d * thinking.rank
    gate = 0
    if thinking.gate == "learned":
        projection = 2 * d * thinking.gate_width if "token" in thinking.gate_inputs else 0
        gate = projection + 2 * thinking.gate_width * thinking.experts
    base = 6 * n * d**2 if thinking.base_every_step else 0
    attention = attention_flops(n + text, d)
    return steps * n * (experts + gate), (steps - 1) * base, (steps - 1) * attention


def forward_flops(config: TransformerConfig) -> float:
    """Return the FLOPs of the whole model, forward, per sample."""
    blocks = sum(config.block_flops(layer) for layer in range(config.depth))
    thinking = len(config.thinking.layers) * sum(thinking_flops(config))
    return blocks + thinking + _embedding_and_final_flops(config)


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
    trained, base, attention = thinking_flops(config)
    # Activation gradients of the blocks that the backward pass goes through, and of the final
    # layer. Both factors of the products of attention are activations.
    blocks = sum(
        config.block_flops(layer) + config.block_attention_flops(layer)
        for layer in range(first, config.depth)
    )
    head = 2 * config.tokens * config.width * config.patch**2 * config.out_channels
    thinking = len(config.thinking.layers) * (2 * trained + base + 2 * attention)
    backward = blocks + head + decoding_flops(config) + thinking - _unneeded_flops(config)
    return batch_size * (forward + backward)


def _unneeded_flops(config: TransformerConfig) -> float:
    """Return the FLOPs of the gradient of x̃ through W in the first thinking block, per sample.

    No trained parameter changes the block's input x̃, so this gradient isn't computed.
    """
    thinking = config.thinking
    once = thinking.latent_steps == 1 or not thinking.base_every_step
    sees_input = once and thinking.base_input == "modulated"
    return 6 * config.tokens * config.width**2 if sees_input else 0.0

"""Analytic FLOPs of a train step: those of matrix products, with two FLOPs per multiply-add.

The counts that XLA reports are not used, because XLA counts the body of a scan only once.
"""

import dataclasses

from tp_jax.models.config import TransformerConfig, attention_flops
from tp_jax.thinking.config import ThinkingConfig
from tp_jax.thinking.cost import expert_flops


def thinking_flops(
    config: TransformerConfig, mean_latent_steps: float | None = None
) -> tuple[float, float, float]:
    """Return the FLOPs that thinking adds to one block, forward, per sample.

    Args:
      config: of the model.
      mean_latent_steps: mean number of latent steps of a token, if tokens halt; None is T. Halted
        tokens take no expert (see `thinking.cost.expert_flops`), but gate and attention compute
        them.

    Returns:
      (FLOPs of the gate and the chosen experts, of further uses of the base projection, and of
      attention). They are separate because their gradients cost differently: the first have trained
      weights, the second may have frozen ones, and attention has none.
    """
    thinking: ThinkingConfig = config.thinking
    n, d, steps = config.tokens, config.width, thinking.latent_steps
    text = config.text.tokens if config.text else 0
    used = steps if mean_latent_steps is None else mean_latent_steps
    experts = expert_flops(d, thinking.rank, n * used)
    gate = 0
    if thinking.gate == "learned":
        projection = 2 * d * thinking.gate_width if "token" in thinking.gate_inputs else 0
        gate = projection + 2 * thinking.gate_width * thinking.experts
    halt = 2 * (steps - 1) * n * d if thinking.halting == "ponder" else 0
    base = 6 * n * d**2 if thinking.base_every_step else 0
    attention = attention_flops(n + text, d)
    return experts + steps * n * gate + halt, (steps - 1) * base, (steps - 1) * attention


def forward_flops(config: TransformerConfig, mean_latent_steps: float | None = None) -> float:
    """Return the FLOPs of the whole model, forward, per sample.

    Args:
      config: of the model.
      mean_latent_steps: as for `thinking_flops`.
    """
    blocks = sum(config.block_flops(layer) for layer in range(config.depth))
    thinking = len(config.thinking.layers) * sum(thinking_flops(config, mean_latent_steps))
    return blocks + thinking + _embedding_and_final_flops(config)


def decoding_flops(config: TransformerConfig) -> tuple[float, float, float]:
    """Return the FLOPs of decoding the intermediate latent steps, forward, per sample.

    Each of them goes through the output projection and MLP of the first thinking block, the later
    blocks and the final layer. Later thinking blocks compute T-1 latent steps instead of their base
    attention. The blocks before the first thinking block, which run once more for all intermediate
    latent steps together, are not counted.

    Returns:
      Of the gate and the chosen experts, of everything else but attention, and of attention, as
      `thinking_flops` separates them.
    """
    first, *others = sorted(config.thinking.layers)
    n, d, steps = config.tokens, config.width, config.thinking.latent_steps
    later = range(first + 1, config.depth)
    attention = sum(config.block_attention_flops(layer) for layer in later)
    rest = config.block_output_flops(first) + sum(config.block_flops(layer) for layer in later)
    rest += 2 * n * d * config.patch**2 * config.out_channels - attention
    trained, base, recursion = thinking_flops(config)
    # The last latent step of a stopped layer and its use of the base projection aren't computed.
    once = attention_flops(n + (config.text.tokens if config.text else 0), d)
    trained *= (steps - 1) / steps * len(others)
    rest += (base - 6 * n * d**2) * len(others)
    attention += (recursion - once) * len(others)
    return (steps - 1) * trained, (steps - 1) * rest, (steps - 1) * attention


def _embedding_and_final_flops(config: TransformerConfig) -> float:
    """Return the FLOPs of all embeddings and the final layer, forward, per sample."""
    patch = config.patch**2
    patches = 2 * config.tokens * config.width * patch * (config.channels + config.out_channels)
    return patches + config.embedding_flops()


def train_step_flops(
    config: TransformerConfig, batch_size: int, trainable: str, *, deep_supervision: bool = False
) -> float:
    """Return the FLOPs of one train step, forward and backward, without remat's recomputation.

    With `trainable="thinking"`, the backward pass ends at the first thinking block, and the base
    has no weight gradients. The result is the mean over the numbers of latent steps that the model
    trains.

    Args:
      config: of the model.
      batch_size: global batch size.
      trainable: `config.train.trainable`.
      deep_supervision: whether `config.train.deep_supervision` is above 0. Models conditioned on a
        frame decode their latent steps in any case.
    """
    decoded = deep_supervision or config.condition_kind == "frame"
    counts = [
        _update_flops(_with_latent_steps(config, steps), batch_size, trainable, decoded)
        for steps in config.trained_latent_steps
    ]
    return sum(counts) / len(counts)


def _with_latent_steps(config: TransformerConfig, steps: int) -> TransformerConfig:
    thinking = dataclasses.replace(config.thinking, latent_steps=steps, latent_steps_range=())
    return dataclasses.replace(config, thinking=thinking)


def _update_flops(
    config: TransformerConfig, batch_size: int, trainable: str, decoded: bool
) -> float:
    decoding = decoding_flops(config) if decoded else (0.0, 0.0, 0.0)
    forward = forward_flops(config) + sum(decoding)
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
    again = 2 * decoding[0] + decoding[1] + 2 * decoding[2]
    backward = blocks + head + again + thinking - _unneeded_flops(config)
    return batch_size * (forward + backward)


def _unneeded_flops(config: TransformerConfig) -> float:
    """Return the FLOPs of the gradient of x̃ through W in the first thinking block, per sample.

    No trained parameter changes the block's input x̃, so this gradient isn't computed.
    """
    thinking = config.thinking
    once = thinking.latent_steps == 1 or not thinking.base_every_step
    sees_input = once and thinking.base_input == "modulated"
    return 6 * config.tokens * config.width**2 if sees_input else 0.0

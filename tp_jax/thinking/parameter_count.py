"""Number of parameters of a thinking layer, and the rank of a plain LoRA with equally many.

Plain LoRA is the baseline with one expert, one latent step and `gate="first"`, which has no
parameters.
"""

from tp_jax.thinking.config import ThinkingConfig


def count_layer_parameters(width: int, config: ThinkingConfig) -> int:
    """Return the number of parameters of one thinking layer.

    They are those of its LayerNorm, experts, gate and halting unit.

    Args:
      width: D.
      config: sizes and choices.

    Example:
      >>> count_layer_parameters(1152, ThinkingConfig())
      2214786
    """
    sets = 1 if config.share_across_steps else config.latent_steps
    experts = 6 * sets * config.experts * width * config.rank
    gate = 0
    if config.gate == "learned":
        inputs = len(config.gate_inputs) * (width + 1) * config.gate_width
        gate = inputs + (config.gate_width + 1) * config.experts
    halt = width + 1 if config.halting == "ponder" else 0
    return 2 * width + experts + gate + halt


def matched_lora_rank(width: int, config: ThinkingConfig) -> int:
    """Return the rank at which a plain LoRA has as many parameters, rounded to the nearest rank.

    Args:
      width: D.
      config: of the thinking layers that the LoRA is compared with.

    Example:
      >>> matched_lora_rank(1152, ThinkingConfig())
      320
    """
    norm = 2 * width
    return max(round((count_layer_parameters(width, config) - norm) / (6 * width)), 1)

"""The networks. `build_model` makes one from its config by the type of the config."""

import flax.linen as nn

from tp_jax.models.dit import DiT, DiTConfig
from tp_jax.models.mmdit import MMDiT, MMDiTConfig
from tp_jax.models.transformer import TransformerConfig

# `config.model.kind` -> (config class, module)
MODELS: dict[str, tuple[type[TransformerConfig], type[nn.Module]]] = {
    "dit": (DiTConfig, DiT),
    "mmdit": (MMDiTConfig, MMDiT),
}

__all__ = ["MODELS", "DiT", "DiTConfig", "MMDiT", "MMDiTConfig", "TransformerConfig", "build_model"]


def build_model(config: TransformerConfig) -> nn.Module:
    """The module of a DiTConfig or an MMDiTConfig."""
    for config_class, module in MODELS.values():
        if type(config) is config_class:
            return module(config)
    raise TypeError(f"no model takes a {type(config).__name__}")

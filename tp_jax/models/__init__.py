"""The diffusion models and their configs, registered in `MODELS`.

The classes of the models are imported only when one is built, because they import jax.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tp_jax.models.config import TransformerConfig
from tp_jax.models.dit_config import DiTConfig
from tp_jax.models.mmdit_config import MMDiTConfig

if TYPE_CHECKING:
    import flax.linen as nn

__all__ = ["MODELS", "DiTConfig", "MMDiTConfig", "TransformerConfig", "build_model"]


def _dit(config: DiTConfig) -> nn.Module:
    from tp_jax.models.dit import DiT

    return DiT(config)


def _mmdit(config: MMDiTConfig) -> nn.Module:
    from tp_jax.models.mmdit import MMDiT

    return MMDiT(config)


# `config.model.kind` -> (config class, config -> module)
MODELS: dict[str, tuple[type[TransformerConfig], Callable[[Any], nn.Module]]] = {
    "dit": (DiTConfig, _dit),
    "mmdit": (MMDiTConfig, _mmdit),
}


def build_model(config: TransformerConfig) -> nn.Module:
    """Return the Flax module for a config.

    Raises:
      TypeError: the class of the config isn't in `MODELS`.

    Example:
      >>> from tp_jax.thinking import ThinkingConfig
      >>> config = DiTConfig(depth=2, width=32, heads=2, thinking=ThinkingConfig(layers=(1,)))
      >>> type(build_model(config))
      <class 'tp_jax.models.dit.DiT'>
    """
    for config_class, build in MODELS.values():
        if type(config) is config_class:
            return build(config)
    raise TypeError(f"{type(config).__name__} is not the config of a model in MODELS")

"""Objectives, samplers and guidance. They call a prediction function and don't depend on a model.

The classes of the objectives are imported only when one is built, because they import jax.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tp_jax.diffusion.config import FlowConfig, GaussianConfig, SamplerConfig

if TYPE_CHECKING:
    from tp_jax.diffusion.objective import Objective

__all__ = ["OBJECTIVES", "FlowConfig", "GaussianConfig", "SamplerConfig"]


def _gaussian(**fields: Any) -> Objective:
    from tp_jax.diffusion.gaussian import GaussianDiffusion

    return GaussianDiffusion(**fields)


def _flow(**fields: Any) -> Objective:
    from tp_jax.diffusion.flow import RectifiedFlow

    return RectifiedFlow(**fields)


# `config.diffusion.kind` -> (config class, its fields -> objective)
OBJECTIVES: dict[str, tuple[type[Any], Callable[..., Objective]]] = {
    "gaussian": (GaussianConfig, _gaussian),
    "flow": (FlowConfig, _flow),
}

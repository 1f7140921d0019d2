"""Objectives, samplers and guidance: functions of a prediction, which know no model."""

from tp_jax.diffusion.flow import RectifiedFlow
from tp_jax.diffusion.gaussian import GaussianDiffusion
from tp_jax.diffusion.guidance import guide
from tp_jax.diffusion.objective import Objective
from tp_jax.diffusion.samplers import SamplerConfig, sample

# `config.diffusion.kind` -> objective
OBJECTIVES: dict[str, type[Objective]] = {"gaussian": GaussianDiffusion, "flow": RectifiedFlow}

__all__ = [
    "OBJECTIVES",
    "GaussianDiffusion",
    "Objective",
    "RectifiedFlow",
    "SamplerConfig",
    "guide",
    "sample",
]

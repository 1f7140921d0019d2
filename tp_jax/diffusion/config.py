"""The fields of `config.diffusion` and `config.sampling`.

This module doesn't import jax, so that commands can show their help and check a config quickly.
"""

import dataclasses
from typing import ClassVar, cast

from tp_jax.messages.errors import UserError


@dataclasses.dataclass(frozen=True)
class GaussianConfig:
    """The fields of `config.diffusion` for `GaussianDiffusion`; the defaults are DiT's.

    Attributes:
      num_timesteps: of the forward process.
      beta_start, beta_end: ends of the linear schedule.
    """

    num_timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    default_sampler: ClassVar[str] = "ddpm"

    @property
    def predicts(self) -> str:
        """Noise, and with it the variance."""
        return "noise"

    def out_channels(self, channels: int) -> int:
        """Noise and variance."""
        return 2 * channels


@dataclasses.dataclass(frozen=True)
class FlowConfig:
    """The fields of `config.diffusion` for `RectifiedFlow`; the defaults are SD3's.

    Attributes:
      shift: s in σ' = s·σ / (1 + (s - 1)·σ), for training times and samplers.
      time_mean, time_std: of the normal whose logistic is a training time; SD3's 0 and 1.
      prediction: "velocity"; or "data", which the model predicts and the velocity follows from:
        for patches of more numbers than the model is wide, which can't carry the noise through
        (Li & He, arXiv 2511.13720).
    """

    shift: float = 3.0
    time_mean: float = 0.0
    time_std: float = 1.0
    prediction: str = "velocity"
    default_sampler: ClassVar[str] = "euler"

    @property
    def predicts(self) -> str:
        """As `prediction` says."""
        return self.prediction

    def __post_init__(self):
        if self.shift <= 0 or self.time_std <= 0:
            raise UserError("config.diffusion.shift and .time_std must be above 0")
        if self.prediction not in ("velocity", "data"):
            raise UserError(
                f"config.diffusion.prediction={self.prediction!r}: choose velocity or data"
            )

    def out_channels(self, channels: int) -> int:
        """The velocity, or the data, alone."""
        return channels


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """The fields of `config.sampling`.

    Attributes:
      sampler: a key of `SAMPLERS`; "ddpm" and "ddim" for Gaussian diffusion, "euler" and
        "heun" for rectified flow.
      steps: number of steps.
      guidance_scale: 1 is no guidance.
      guidance_channels: how many of the first channels are guided; 0 is all of the prediction.
      guidance_interval: of timestep / 1000, where guidance is on.
      spacing: of Gaussian timesteps, "even" (DiT) or "stride" (ADM's "ddimN").
      eta: of DDIM; 0 is deterministic.
      clip: clip the predicted data to [-1, 1] (Gaussian, pixels).
    """

    sampler: str = "ddpm"
    steps: int = 250
    guidance_scale: float = 1.0
    guidance_channels: int = 0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    spacing: str = "even"
    eta: float = 0.0
    clip: bool = False

    def __post_init__(self):
        object.__setattr__(self, "guidance_interval", tuple(self.guidance_interval))
        given = cast("tuple[object, ...]", self.guidance_interval)
        numbers = [value for value in given if isinstance(value, int | float)]
        if len(numbers) != 2 or len(self.guidance_interval) != 2:
            raise UserError(
                f"guidance_interval={self.guidance_interval}: give two numbers, as 0.0,1.0"
            )
        if self.spacing not in ("even", "stride"):
            raise UserError(f"spacing={self.spacing!r}: choose even or stride")

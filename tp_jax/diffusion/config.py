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
      num_timesteps: number of timesteps of the forward process.
      beta_start, beta_end: first and last β of the linear schedule.

    Example:
      >>> GaussianConfig().prediction_type, GaussianConfig().out_channels(4)
      ('noise', 8)
    """

    num_timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    default_sampler: ClassVar[str] = "ddpm"

    @property
    def prediction_type(self) -> str:
        """Return "noise"."""
        return "noise"

    def out_channels(self, channels: int) -> int:
        """Return the output channels of the model: noise and variance."""
        return 2 * channels


@dataclasses.dataclass(frozen=True)
class FlowConfig:
    """The fields of `config.diffusion` for `RectifiedFlow`; the defaults are SD3's.

    Attributes:
      shift: s in σ' = s·σ / (1 + (s - 1)·σ), applied to σ in training and sampling.
      time_mean, time_std: σ in training is the logistic function of a normal with this mean and
        standard deviation, before the shift.
      prediction: what the model predicts: "velocity", or "data", from which the velocity is
        computed. Use "data" if a patch has more values than the model's width, because the tokens
        can't then carry all the noise (Li & He, arXiv 2511.13720).

    Raises:
      UserError: a value is out of range; the message names the field.

    Example:
      >>> FlowConfig().prediction_type, FlowConfig().out_channels(4)
      ('velocity', 4)
    """

    shift: float = 3.0
    time_mean: float = 0.0
    time_std: float = 1.0
    prediction: str = "velocity"
    default_sampler: ClassVar[str] = "euler"

    @property
    def prediction_type(self) -> str:
        """Return `prediction`."""
        return self.prediction

    def __post_init__(self):
        if self.shift <= 0 or self.time_std <= 0:
            raise UserError(
                f"config.diffusion.shift={self.shift} and "
                f"config.diffusion.time_std={self.time_std}: both must be above 0"
            )
        if self.prediction not in ("velocity", "data"):
            raise UserError(
                f"config.diffusion.prediction={self.prediction!r}: choose velocity or data"
            )

    def out_channels(self, channels: int) -> int:
        """Return the output channels of the model: as many as the data has."""
        return channels


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """The fields of `config.sampling`.

    Attributes:
      sampler: "ddpm" or "ddim" for Gaussian diffusion, "euler" or "heun" for rectified flow; a key
        of `samplers.SAMPLERS`.
      steps: number of sampler steps.
      guidance_scale: scale of classifier-free guidance; 1 is no guidance.
      guidance_channels: number of output channels, from the first, that are guided; 0 is all.
      guidance_interval: (low, high); guidance applies where low ≤ timestep / 1000 ≤ high.
      spacing: of the timesteps of Gaussian diffusion: "even" (DiT) or "stride" (ADM's "ddimN").
      eta: noise scale η of DDIM; 0 is deterministic.
      clip: clip the predicted data to [-1, 1] (Gaussian diffusion of pixels).

    Raises:
      UserError: a value is out of range; the message names the field.

    Example:
      >>> SamplerConfig(sampler="euler", steps=28, guidance_scale=5.0).guidance_interval
      (0.0, 1.0)
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
                f"guidance_interval={self.guidance_interval}: must be two numbers, such as 0.0,1.0"
            )
        if self.spacing not in ("even", "stride"):
            raise UserError(f"spacing={self.spacing!r}: choose even or stride")

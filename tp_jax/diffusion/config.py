"""The fields of `config.diffusion` and `config.sampling`.

This module doesn't import jax, so that commands can show their help and check a config quickly.
"""

import dataclasses
import math
from typing import Annotated, ClassVar

from tp_jax.messages.errors import UserError
from tp_jax.values import Ascending, Choice, Range, check_fields
from tp_jax.values.kinds import Number, Positive, SizeOrZero

# A smaller β is lost in 1 - β.
Beta = Annotated[float, Range(1e-8, 1, below=True)]
# If less of the data is left at the last timestep, float32 can't hold the factor that restores it.
LEAST_SIGNAL = 1e-70


@dataclasses.dataclass(frozen=True)
class GaussianConfig:
    """The fields of `config.diffusion` for `GaussianDiffusion`; the defaults are DiT's.

    Attributes:
      num_timesteps: number of timesteps of the forward process.
      beta_start, beta_end: first and last β of the linear schedule, which must not descend.

    Raises:
      UserError: a value is out of range, or the schedule leaves nothing of the data; the message
        names the field.

    Example:
      >>> GaussianConfig().prediction_type, GaussianConfig().out_channels(4)
      ('noise', 8)
    """

    num_timesteps: Annotated[int, Range(2, 100_000)] = 1000
    beta_start: Beta = 1e-4
    beta_end: Beta = 0.02
    default_sampler: ClassVar[str] = "ddpm"

    def __post_init__(self) -> None:
        check_fields(self, "config.diffusion.")
        schedule = f"config.diffusion.beta_start={self.beta_start} and beta_end={self.beta_end}"
        if self.beta_start > self.beta_end:
            raise UserError(f"{schedule}: beta_start must not be above beta_end")
        betas = (self.beta_start + i / 100 * (self.beta_end - self.beta_start) for i in range(101))
        log_signal = self.num_timesteps * sum(math.log1p(-beta) for beta in betas) / 101
        if log_signal < math.log(LEAST_SIGNAL):
            raise UserError(
                f"{schedule} leave nothing of the data after config.diffusion.num_timesteps="
                f"{self.num_timesteps} timesteps: choose smaller ones, or fewer timesteps"
            )

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

    shift: Positive = 3.0
    time_mean: Number = 0.0
    time_std: Positive = 1.0
    prediction: Annotated[str, Choice("velocity", "data"), "choose velocity or data"] = "velocity"
    default_sampler: ClassVar[str] = "euler"

    @property
    def prediction_type(self) -> str:
        """Return `prediction`."""
        return self.prediction

    def __post_init__(self) -> None:
        check_fields(self, "config.diffusion.")

    def out_channels(self, channels: int) -> int:
        """Return the output channels of the model: as many as the data has."""
        return channels


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """The fields of `config.sampling`.

    Attributes:
      sampler: "ddpm" or "ddim" for Gaussian diffusion, "euler" or "heun" for rectified flow,
        "dpmpp_2m" for both; a key of `samplers.SAMPLERS`.
      steps: number of sampler steps.
      guidance_scale: scale of classifier-free guidance; 1 is no guidance.
      guidance_channels: number of output channels, from the first, that are guided; 0 is all.
      guidance_interval: (low, high) with 0 ≤ low ≤ high ≤ 1; guidance applies where
        low ≤ timestep / 1000 ≤ high.
      spacing: of the timesteps of Gaussian diffusion: "even" (DiT) or "stride" (ADM's "ddimN").
      eta: noise scale η of "ddim" and "euler"; 0 is deterministic.
      clip: clip the predicted data to [-1, 1] (Gaussian diffusion of pixels).

    Raises:
      UserError: a value is out of range; the message names the field.

    Example:
      >>> SamplerConfig(sampler="euler", steps=28, guidance_scale=5.0).guidance_interval
      (0.0, 1.0)
    """

    sampler: str = "ddpm"
    steps: Annotated[int, Range(1, 100_000)] = 250
    guidance_scale: Number = 1.0
    guidance_channels: SizeOrZero = 0
    guidance_interval: Annotated[
        tuple[float, float], Range(0, 1), Ascending(),
        "must be two numbers from 0 to 1, the smaller one first, such as 0.0,1.0",
    ] = (0.0, 1.0)  # fmt: skip
    spacing: Annotated[str, Choice("even", "stride")] = "even"
    eta: Annotated[float, Range(0, 1)] = 0.0
    clip: bool = False

    def __post_init__(self) -> None:
        check_fields(self, "")

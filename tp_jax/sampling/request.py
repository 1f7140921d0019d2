"""Requests: the flags that all sampling commands share, and the generator that they configure."""

import contextlib
import dataclasses
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from typing import Any

import jax
from etils import epath

from tp_jax import config as config_lib
from tp_jax.cli.flags import required_path
from tp_jax.diffusion import SamplerConfig
from tp_jax.diffusion.samplers import check_sampler
from tp_jax.messages.errors import UserError
from tp_jax.messages.progress import say
from tp_jax.sampling.generator import Generator
from tp_jax.sampling.loaded import Loaded, ModelOnMesh, load, without_thinking
from tp_jax.sampling.prompts import check_is_text


def check_no_frame(loaded: ModelOnMesh) -> None:
    """Raise a UserError if the model is conditioned on a frame, which no flag can give."""
    if loaded.built.model.condition_kind == "frame":
        raise UserError(
            f"{loaded.workdir} has a model that predicts what follows a given frame: use python -m "
            f"tp_jax.evaluate --suite={loaded.config.data.source}, which supplies the frames"
        )


def drawn_size(
    loaded: ModelOnMesh, height: int | None, width: int | None
) -> tuple[int, int] | None:
    """Return the size of the model's samples for images of the requested size.

    Args:
      loaded: the model.
      height, width: of the images in pixels; None is the size that the model was trained on.

    Returns:
      Height and width of the samples, in latents or pixels as the model generates them. None if
      both arguments are None.

    Raises:
      UserError: the model can't generate that size.
    """
    if height is None and width is None:
        return None
    model = loaded.built.model
    if model.size_limits is None:
        raise UserError(
            f"--height and --width: a {loaded.config.model.kind} model only generates the size "
            f"that it was trained on, so leave them out"
        )
    factor = loaded.codec.space.factor if loaded.codec else 1
    pixels = [model.image_size * factor if side is None else side for side in (height, width)]
    unit, largest = (factor * side for side in model.size_limits)
    for name, side in zip(("height", "width"), pixels, strict=True):
        if side % unit or not unit <= side <= largest:
            raise UserError(f"--{name}={side}: must be a multiple of {unit}, up to {largest}")
    return pixels[0] // factor, pixels[1] // factor


def picture_size(model: ModelOnMesh) -> tuple[int, int]:
    """Return the height and width, in pixels, of the images that a model generates.

    Raises:
      UserError: it generates latents and there is no autoencoder, so they can't be scored.
    """
    side, channels = model.built.model.image_size, model.built.model.channels
    if model.codec:
        return side * model.codec.space.factor, side * model.codec.space.factor
    if channels not in (1, 3):
        raise UserError(
            f"the model generates latents of {channels} channels, which can't be scored: set "
            f"config.autoencoder.path to the autoencoder that decodes them"
        )
    return side, side


def changed_sampler(sampler: SamplerConfig, changes: dict[str, Any]) -> SamplerConfig:
    """Return the sampler with the given fields replaced, except those that are None."""
    return dataclasses.replace(sampler, **{k: v for k, v in changes.items() if v is not None})


def make_generator(
    loaded: ModelOnMesh,
    sampler_changes: dict[str, Any] | None = None,
    batch_size: int = 64,
    latent_steps: int | None = None,
    height: int | None = None,
    width: int | None = None,
    halting_epsilon: float | None = None,
) -> Generator:
    """Build a generator for a loaded model.

    Args:
      loaded: the model.
      sampler_changes: fields of the config's sampler to replace.
      batch_size: samples per batch.
      latent_steps: number T of latent steps; by default that of training.
      height, width: of the images in pixels; by default the size of training.
      halting_epsilon: ε of halting by "threshold"; by default tokens halt as the config says.

    Raises:
      UserError: the sampler or the size doesn't fit the model, or the batch size doesn't fit the
        devices.
    """
    size, built = drawn_size(loaded, height, width), loaded.built
    sampler = changed_sampler(built.sampler, sampler_changes or {})
    check_sampler(sampler, built.objective)
    config_lib.check_guidance(sampler, built.model)
    return Generator(
        loaded.model,
        built.objective,
        sampler,
        loaded.mesh,
        batch_size,
        latent_steps,
        loaded.codec,
        size,
        halting_epsilon,
    )


def say_untrained_latent_steps(model: ModelOnMesh, latent_steps: Collection[int | None]) -> None:
    """Say which numbers of latent steps training left out, because a model may be bad at them.

    Args:
      model: the model.
      latent_steps: the numbers that it will be sampled with; None is the config's.

    Raises:
      UserError: the model has no experts for one of them.
    """
    config = model.built.model
    given = {steps for steps in latent_steps if steps is not None}
    for steps in sorted(given):
        model.model.config.thinking.check_latent_steps(steps)
    left_out = sorted(given - set(config.trained_latent_steps))
    if config.thinking.layers and left_out:
        say(
            f"latent_steps={', '.join(map(str, left_out))}: the model was trained with "
            f"{config.trained_latent_steps_text}, and may be worse with other numbers"
        )


def sampler_fields(loaded: ModelOnMesh, changes: dict[str, Any]) -> dict[str, Any]:
    """Return the changed sampler as a JSON object."""
    fields = dataclasses.asdict(changed_sampler(loaded.built.sampler, changes))
    return fields | {"guidance_interval": list(fields["guidance_interval"])}


def matmul_precision(name: str | None) -> AbstractContextManager[Any]:
    """Return a context that sets jax's matmul precision; None keeps the device's default."""
    return jax.default_matmul_precision(name) if name else contextlib.nullcontext()


@dataclasses.dataclass(frozen=True)
class Request:
    """The flags that `tp_jax.sample` and `tp_jax.evaluate --make` share.

    Attributes:
      workdir: folder of the trained model.
      out: file or folder that the images are written to.
      num: number of samples; None is the command's default.
      seed: seed of the noise; the same seed gives the same samples.
      batch_size: samples per batch; doesn't change the samples.
      sampler_changes: fields of the config's sampler to replace, except those that are None.
      latent_steps: number T of latent steps; None is that of training.
      halting_epsilon: ε of halting by "threshold"; None halts tokens as the config says.
      checkpoint: train step of the checkpoint; None is the newest.
      negative_prompt: prompt that takes the place of the empty one in classifier-free guidance.
      height, width: of the images in pixels; None is the size of training.
      dtype: compute dtype of the model, "float32" or "bfloat16"; None is the config's.
      matmul_precision: jax's matmul precision, such as "highest"; None is the device's default.
      autoencoder: folder of the autoencoder that decodes latents; None is the config's.
      text: folder of the text encoders; None is the config's.
      truncate: cut prompts that are too long for the encoder.
      ema: use the moving average of the parameters; if False, the parameters themselves.
      thinking: if False, sample with the base model only, see `without_thinking`.
      overwrite: replace the images of another request in `out`.
      allow_unchecked: accept a checkpoint whose checksums are missing or damaged.
    """

    workdir: epath.Path
    out: epath.Path
    num: int | None = None
    seed: int = 0
    batch_size: int = 64
    sampler_changes: dict[str, Any] = dataclasses.field(default_factory=dict)
    latent_steps: int | None = None
    halting_epsilon: float | None = None
    checkpoint: int | None = None
    negative_prompt: str = ""
    height: int | None = None
    width: int | None = None
    dtype: str | None = None
    matmul_precision: str | None = None
    autoencoder: str | None = None
    text: str | None = None
    truncate: bool = False
    ema: bool = True
    thinking: bool = True
    overwrite: bool = False
    allow_unchecked: bool = False


def open_model(request: Request) -> Loaded:
    """Load the model of a request.

    Raises:
      UserError: it can't be loaded.
    """
    loaded = load(
        request.workdir,
        request.checkpoint,
        ema=request.ema,
        dtype=request.dtype,
        autoencoder=request.autoencoder,
        text=request.text,
        truncate=request.truncate,
        allow_unchecked=request.allow_unchecked,
    )
    if not request.thinking:
        loaded, base = without_thinking(loaded, allow_unchecked=request.allow_unchecked)
        say(f"the base model only: {base}")
    say_untrained_latent_steps(loaded, [request.latent_steps])
    return loaded


def open_generator(request: Request) -> tuple[Loaded, Generator]:
    """Load the model of a request, and build its generator.

    Raises:
      UserError: the model can't be loaded, or doesn't support something that was requested.
    """
    loaded = open_model(request)
    return loaded, make_generator(
        loaded,
        request.sampler_changes,
        request.batch_size,
        request.latent_steps,
        request.height,
        request.width,
        request.halting_epsilon,
    )


def request_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a `Request`, except `out`, from flags.

    Args:
      values: values of the flags of `cli.sampling_flags`. Fields keep their defaults if the
        command doesn't have their flags.
    """
    check_is_text("negative_prompt", values.get("negative_prompt") or "")
    known = {field.name for field in dataclasses.fields(Request)} - {"out", "workdir"}
    return {
        "workdir": required_path("workdir"),
        "sampler_changes": {
            "sampler": values.get("sampler"),
            "steps": values.get("sampler_steps"),
            "guidance_scale": values.get("guidance_scale"),
            "guidance_channels": values.get("guidance_channels"),
        },
        **{name: value for name, value in values.items() if name in known},
    }

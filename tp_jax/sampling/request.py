"""What is asked of a drawing, whatever it is of, and the generator that answers it."""

import contextlib
import dataclasses
import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import jax
from etils import epath

from tp_jax import config as config_lib
from tp_jax.cli.flags import required
from tp_jax.diffusion import SamplerConfig
from tp_jax.files.differences import first_difference
from tp_jax.messages.errors import UserError
from tp_jax.messages.progress import say
from tp_jax.sampling.generator import Generator
from tp_jax.sampling.loaded import Loaded, ModelOnMesh, load, without_thinking


def check_no_frame(loaded: ModelOnMesh, workdir: epath.Path) -> None:
    """Raises a UserError if a model draws what follows a frame, which needs to be given."""
    if loaded.built.model.takes == "frame":
        raise UserError(
            f"{workdir} draws what follows a frame, which has to be given: python -m "
            f"tp_jax.evaluate --suite={loaded.config.data.source} draws from frames of its world"
        )


def drawn_size(
    loaded: ModelOnMesh, height: int | None, width: int | None
) -> tuple[int, int] | None:
    """What the model draws for pictures of so many pixels; None is the square of training.

    Raises:
      UserError: it can't draw that size.
    """
    if height is None and width is None:
        return None
    model = loaded.built.model
    if model.sides is None:
        raise UserError(
            f"--height and --width: a {loaded.config.model.kind} draws the size that it was "
            f"trained on alone"
        )
    factor = loaded.codec.space.factor if loaded.codec else 1
    pixels = [model.image_size * factor if side is None else side for side in (height, width)]
    unit, most = (factor * side for side in model.sides)
    for name, side in zip(("height", "width"), pixels, strict=True):
        if side % unit or not unit <= side <= most:
            raise UserError(f"--{name}={side}: give a multiple of {unit} up to {most}")
    return pixels[0] // factor, pixels[1] // factor


def picture_size(model: ModelOnMesh) -> tuple[int, int]:
    """Height and width of the pictures that a model draws.

    Raises:
      UserError: it draws latents that nothing decodes, and those can't be scored.
    """
    side, channels = model.built.model.image_size, model.built.model.channels
    if model.codec:
        return side * model.codec.space.factor, side * model.codec.space.factor
    if channels not in (1, 3):
        raise UserError(
            f"a model of {channels} channels draws latents, which can't be scored: name the "
            f"autoencoder that decodes them in config.autoencoder.path"
        )
    return side, side


def changed_sampler(sampler: SamplerConfig, changes: dict[str, Any]) -> SamplerConfig:
    """The sampler with those fields replaced that aren't None."""
    return dataclasses.replace(sampler, **{k: v for k, v in changes.items() if v is not None})


def make_generator(
    loaded: ModelOnMesh,
    sampler_changes: dict[str, Any] | None = None,
    batch_size: int = 64,
    latent_steps: int | None = None,
    size: tuple[int, int] | None = None,
) -> Generator:
    """A generator for a loaded model, with its config's sampler but for what is changed.

    Raises:
      UserError: the sampler doesn't fit the model, or the batch the devices.
    """
    built = loaded.built
    sampler = changed_sampler(built.sampler, sampler_changes or {})
    sampler.check(built.objective)
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
    )


def sampler_fields(loaded: ModelOnMesh, changes: dict[str, Any]) -> dict[str, Any]:
    """The sampler as JSON."""
    fields = dataclasses.asdict(changed_sampler(loaded.built.sampler, changes))
    return fields | {"guidance_interval": list(fields["guidance_interval"])}


def matmul_precision(name: str | None) -> AbstractContextManager[Any]:
    """A context with jax's default matmul precision; None leaves the device's own."""
    return jax.default_matmul_precision(name) if name else contextlib.nullcontext()


@dataclasses.dataclass(frozen=True)
class Request:
    """How images are drawn, whatever they are of; flags of `tp_jax.sample` and `evaluate --make`.

    Attributes:
      out: where the images go.
      batch_size: drawn at once; doesn't change them.
      sampler_changes: fields of the config's sampler to replace, where they aren't None.
      latent_steps: T of the recursion; None is that of training.
      checkpoint: its train_step; None is the newest.
      negative_prompt: what guidance leads away from.
      height, width: of the pictures in pixels; None is as trained.
      dtype: that the model computes in; None is the config's.
      matmul_precision: of jax, as "highest"; None is the device's own.
      autoencoder, text: folders of what decodes, and of the text encoders; None is the config's.
      truncate: cut prompts that are longer than the encoder takes.
      thinking: False draws with the base alone, see `without_thinking`.
    """

    workdir: epath.Path
    out: epath.Path
    num: int | None = None
    seed: int = 0
    batch_size: int = 64
    sampler_changes: dict[str, Any] = dataclasses.field(default_factory=dict)
    latent_steps: int | None = None
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


def open_generator(request: Request) -> tuple[Loaded, Generator]:
    """The model and the generator that a request is for.

    Raises:
      UserError: anything that was asked for can't be had.
    """
    loaded = load(
        request.workdir,
        request.checkpoint,
        ema=request.ema,
        dtype=request.dtype,
        autoencoder=request.autoencoder,
        text=request.text,
        truncate=request.truncate,
    )
    if not request.thinking:
        loaded, base = without_thinking(loaded)
        say(f"base: {base}")
    size = drawn_size(loaded, request.height, request.width)
    changes, steps = request.sampler_changes, request.latent_steps
    return loaded, make_generator(loaded, changes, request.batch_size, steps, size)


# Of a request, what doesn't decide the images, or is said by what it stands for.
_ELSEWHERE = ("out", "batch_size", "sampler_changes", "autoencoder", "text", "truncate")


def describe(request: Request, loaded: Loaded, encoder: str | None) -> dict[str, Any]:
    """JSON of what decides the images: those of another description don't go beside them.

    Args:
      encoder: identity of the text encoder.
    """
    fields = {k: v for k, v in dataclasses.asdict(request).items() if k not in _ELSEWHERE}
    return fields | {
        "workdir": str(request.workdir.absolute()),
        "checkpoint": loaded.train_step,
        "encoder": encoder,
        "sampler": sampler_fields(loaded, request.sampler_changes),
        "dtype": loaded.built.model.dtype,
        "autoencoder": loaded.codec.space.identity if loaded.codec else None,
    }


def check_same_drawing(
    path: epath.Path, description: dict[str, Any], what: str, remedy: str
) -> None:
    """Raises a UserError unless a file says the same of a drawing.

    Args:
      path: JSON of what decided the images that are there.
      what: is there, and remedy, for the message.
    """
    try:
        old = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is damaged: {remedy} to draw anew") from error
    changed = first_difference(old, description)
    if changed:
        raise UserError(
            f"{what} of another drawing: {changed.name} was {changed.old}, now {changed.new}; "
            f"finish that one, name another --out, or {remedy}"
        )


def request_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a `Request`, but for `out`, from the values of flags.

    Args:
      values: of `cli.sampling_flags`; fields whose flags an entry doesn't have stay at their
        defaults.
    """
    known = {field.name for field in dataclasses.fields(Request)} - {"out", "workdir"}
    return {
        "workdir": epath.Path(required("workdir")),
        "sampler_changes": {
            "sampler": values["sampler"],
            "steps": values["sampler_steps"],
            "guidance_scale": values["guidance_scale"],
            "guidance_channels": values["guidance_channels"],
        },
        **{name: value for name, value in values.items() if name in known},
    }

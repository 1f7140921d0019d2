"""Trained models on this machine's devices, ready to draw, and prompts as they take them."""

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from tp_jax import config as config_lib
from tp_jax.codec import Codec, load_codec
from tp_jax.data import check_text
from tp_jax.diffusion import SamplerConfig
from tp_jax.errors import UserError
from tp_jax.generation import Generator
from tp_jax.models import build_model
from tp_jax.output import say
from tp_jax.parallel.mesh import DATA_PARALLEL, create_mesh
from tp_jax.parallel.sharding import tree_shardings
from tp_jax.text import TextEncoder, load_encoder
from tp_jax.train import checkpoint as checkpoint_lib
from tp_jax.train.state import Params, abstract_params, with_shardings
from tp_jax.train.workdir import check_text_space, read_config


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A trained model on this machine's devices, whatever it was trained on."""

    model: nn.Module
    params: Params
    built: config_lib.Built
    mesh: Mesh
    num_classes: int
    train_step: int
    codec: Codec | None
    config: ConfigDict
    workdir: epath.Path


def load(
    workdir: epath.Path,
    train_step: int | None = None,
    *,
    ema: bool = True,
    dtype: str | None = None,
    autoencoder: str | None = None,
    text: str | None = None,
    truncate: bool = False,
) -> Loaded:
    """Loads a workdir, local or gs://, onto all devices here, data-parallel.

    Args:
      train_step: of the checkpoint; the newest by default.
      ema: averaged parameters, or those as trained.
      dtype: that the model computes in; the config's by default.
      autoencoder: folder of the autoencoder that decodes; the config's by default.
      text: folder of the text encoders; the config's by default.
      truncate: cut prompts that are longer than the encoder takes, and say so.

    Raises:
      UserError: there is no such workdir, checkpoint or autoencoder.
    """
    config = read_config(workdir)
    config.model.dtype = dtype or config.model.dtype
    config.autoencoder.path = autoencoder or config.autoencoder.path
    config.text.path = text or config.text.path
    config.text.truncate = truncate or config.text.truncate
    built = config_lib.build(config)
    model, mesh = build_model(built.model), create_mesh(DATA_PARALLEL)
    shapes = abstract_params(model)
    target = with_shardings(shapes, tree_shardings(shapes, mesh))
    codec = load_codec(config.autoencoder, mesh)
    if codec and codec.space.channels != built.model.channels:
        raise UserError(
            f"the autoencoder {config.autoencoder.path} has {codec.space.channels} channels, the "
            f"model {built.model.channels}: name the one that the model was trained with"
        )
    if config.data.source == "latents" and not codec:
        raise UserError(
            f"{workdir} was trained on latents: name the autoencoder that decodes them with "
            f"--autoencoder=DIR"
        )
    with checkpoint_lib.open_manager(workdir) as manager:
        train_step = checkpoint_lib.find_step(manager, train_step)
        params = checkpoint_lib.restore_params(manager, train_step, target, ema=ema)
    num_classes = getattr(config.model, "num_classes", 0)
    return Loaded(model, params, built, mesh, num_classes, train_step, codec, config, workdir)


def without_thinking(loaded: Loaded, base: str | None = None) -> tuple[Loaded, str]:
    """The base model that a loaded one is to be compared with, and what it is.

    Args:
      base: base checkpoint or workdir; None is the base that the model was trained from, or,
        where all was trained from random weights, its own base weights without thinking.

    Raises:
      UserError: the base isn't there, or doesn't fit.
    """
    frozen = loaded.config.train.trainable == "thinking"
    path = base or ("" if frozen else loaded.config.init.base)
    model_config = dataclasses.replace(
        loaded.built.model, thinking=dataclasses.replace(loaded.built.model.thinking, layers=())
    )
    params = {"base": loaded.params["base"]}
    if path:
        shapes = abstract_params(build_model(model_config))
        target = with_shardings(shapes, tree_shardings(shapes, loaded.mesh))
        params = {"base": checkpoint_lib.load_base(path, target["base"], loaded.config.model)}
    built = dataclasses.replace(loaded.built, model=model_config)
    own = "the frozen base" if frozen else "the same weights, thinking off"
    changed = dataclasses.replace(loaded, model=build_model(model_config), params=params)
    return dataclasses.replace(changed, built=built), path or own


@dataclasses.dataclass(frozen=True)
class Prompts:
    """Prompts as a model takes them, N of them.

    Attributes:
      texts: themselves.
      conditions: {"text", "pooled", "null_text", "null_pooled"}, each [N, …] float16.
      encoder: identity of what encoded them.
    """

    texts: tuple[str, ...]
    conditions: dict[str, np.ndarray]
    encoder: str


def check_no_frame(loaded: Loaded, workdir: epath.Path) -> None:
    """Raises a UserError if a model draws what follows a frame, which needs to be given."""
    if getattr(loaded.built.model, "frame", ""):
        raise UserError(
            f"{workdir} draws what follows a frame: python -m tp_jax.evaluate --suite=navigation "
            f"draws, plays and shows that"
        )


def load_text(loaded: Loaded) -> TextEncoder:
    """The text encoder that a model was trained with.

    Raises:
      UserError: the model takes classes, or the encoder isn't there or isn't that one.
    """
    model = loaded.config.model
    if model.kind == "dit":
        raise UserError(f"a {model.kind} model draws classes, not prompts: give --labels")
    encoder = load_encoder(loaded.config.text)
    check_text_space(loaded.workdir, encoder.space)
    check_text(encoder.space, model, f"config.text.encoder={loaded.config.text.encoder!r}")
    return encoder


# Prompts that are encoded at once.
_AT_ONCE = 64


def encode_prompts(
    loaded: Loaded, texts: Sequence[str], negative: str = "", encoder: TextEncoder | None = None
) -> Prompts:
    """Encodes prompts, and the one that guidance leads away from, into float16.

    Args:
      encoder: of `load_text`, where it is loaded already.

    Raises:
      UserError: as `load_text`, or there are none, or one is longer than the encoder takes.
    """
    encoder = encoder or load_text(loaded)
    if not texts:
        raise UserError("--prompts is empty: give a prompt, or a file with one on each line")
    for text in (*texts, negative):
        encoder.check(text)
    null = {f"null_{name}": array for name, array in encoder.encode([negative]).items()}
    # Half the memory, and the numbers that training on prepared text saw.
    parts = [
        {
            name: array.astype(np.float16)
            for name, array in encoder.encode(texts[at : at + _AT_ONCE]).items()
        }
        for at in range(0, len(texts), _AT_ONCE)
    ]
    conditions = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    for name, array in null.items():
        shape = (len(texts), *array.shape[1:])
        conditions[name] = np.broadcast_to(array.astype(np.float16), shape)
    return Prompts(tuple(texts), conditions, encoder.space.identity)


def drawn_size(loaded: Loaded, height: int | None, width: int | None) -> tuple[int, int] | None:
    """What the model draws for pictures of so many pixels; None is the square of training.

    Raises:
      UserError: it can't draw that size.
    """
    if height is None and width is None:
        return None
    model = loaded.built.model
    if loaded.config.model.kind == "dit":
        raise UserError("--height and --width: a dit draws the size that it was trained on alone")
    factor = loaded.codec.space.factor if loaded.codec else 1
    pixels = [model.image_size * factor if side is None else side for side in (height, width)]
    unit, most = factor * model.patch, factor * model.patch * model.max_grid
    for name, side in zip(("height", "width"), pixels, strict=True):
        if side % unit or not unit <= side <= most:
            raise UserError(f"--{name}={side}: give a multiple of {unit} up to {most}")
    return pixels[0] // factor, pixels[1] // factor


def changed_sampler(sampler: SamplerConfig, changes: dict[str, Any]) -> SamplerConfig:
    """The sampler with those fields replaced that aren't None."""
    return dataclasses.replace(sampler, **{k: v for k, v in changes.items() if v is not None})


def make_generator(
    loaded: Loaded,
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


def sampler_fields(loaded: Loaded, changes: dict[str, Any]) -> dict[str, Any]:
    """The sampler as JSON."""
    fields = dataclasses.asdict(changed_sampler(loaded.built.sampler, changes))
    return fields | {"guidance_interval": list(fields["guidance_interval"])}


def matmul_precision(name: str | None):
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

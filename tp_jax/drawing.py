"""Samples of a trained workdir, into a file or a folder."""

import contextlib
import dataclasses
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from tp_jax import config as config_lib
from tp_jax import parts as parts_lib
from tp_jax.codec import Codec, load_codec
from tp_jax.diffusion import SamplerConfig
from tp_jax.errors import UserError
from tp_jax.generation import Generator, choose_labels
from tp_jax.images import make_grid, save_png, to_uint8
from tp_jax.models import build_model
from tp_jax.output import progress_bar, say
from tp_jax.parallel.mesh import DATA_PARALLEL, create_mesh
from tp_jax.parallel.sharding import tree_shardings
from tp_jax.train import checkpoint as checkpoint_lib
from tp_jax.train.state import Params, abstract_params, with_shardings
from tp_jax.train.workdir import read_config


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


def load(
    workdir: epath.Path,
    train_step: int | None = None,
    *,
    ema: bool = True,
    dtype: str | None = None,
    autoencoder: str | None = None,
) -> Loaded:
    """Loads a workdir, local or gs://, onto all devices here, data-parallel.

    Args:
      train_step: of the checkpoint; the newest by default.
      ema: averaged parameters, or those as trained.
      dtype: that the model computes in; the config's by default.
      autoencoder: folder of the autoencoder that decodes; the config's by default.

    Raises:
      UserError: there is no such workdir, checkpoint or autoencoder.
    """
    config = read_config(workdir)
    config.model.dtype = dtype or config.model.dtype
    config.autoencoder.path = autoencoder or config.autoencoder.path
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
    return Loaded(model, params, built, mesh, num_classes, train_step, codec, config)


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


def changed_sampler(sampler: SamplerConfig, changes: dict[str, Any]) -> SamplerConfig:
    """The sampler with those fields replaced that aren't None."""
    return dataclasses.replace(sampler, **{k: v for k, v in changes.items() if v is not None})


def make_generator(
    loaded: Loaded,
    sampler_changes: dict[str, Any] | None = None,
    batch_size: int = 64,
    latent_steps: int | None = None,
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
    )


@dataclasses.dataclass(frozen=True)
class Drawing:
    """What to draw, and where to; the flags of `tp_jax.sample`.

    Attributes:
      labels: classes to go round; empty is all of them.
      uniform: draw classes uniformly instead of going round.
      matmul_precision: of jax, as "highest"; None is the device's own.
      dtype: that the model computes in; None is the config's.
      autoencoder: folder of the autoencoder that decodes; None is the config's.
    """

    workdir: epath.Path
    out: epath.Path
    num: int = 64
    labels: tuple[int, ...] = ()
    uniform: bool = False
    seed: int = 0
    batch_size: int = 64
    sampler_changes: dict[str, Any] = dataclasses.field(default_factory=dict)
    latent_steps: int | None = None
    checkpoint: int | None = None
    ema: bool = True
    matmul_precision: str | None = None
    dtype: str | None = None
    autoencoder: str | None = None


def draw_samples(drawing: Drawing) -> None:
    """Draws and writes: an npz of `arr_0` uint8 NHWC and `arr_1` labels, or PNGs and a grid.

    An npz is drawn in parts, so that the same drawing, killed, goes on.

    Raises:
      UserError: anything that was asked for can't be had; nothing is written then.
    """
    as_file = drawing.out.suffix == ".npz"
    if drawing.out.exists() and drawing.out.is_dir() == as_file:
        kind = "folder" if as_file else "file"
        raise UserError(f"--out={drawing.out} is a {kind}: name FILE.npz or a folder")
    loaded = load(
        drawing.workdir,
        drawing.checkpoint,
        ema=drawing.ema,
        dtype=drawing.dtype,
        autoencoder=drawing.autoencoder,
    )
    label_seed = drawing.seed if drawing.uniform else None
    labels = choose_labels(drawing.labels, drawing.num, loaded.num_classes, label_seed)
    generator = make_generator(
        loaded, drawing.sampler_changes, drawing.batch_size, drawing.latent_steps
    )
    # Before drawing, so that hours of it aren't lost for want of a folder.
    folder = drawing.out.parent if as_file else drawing.out
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out={drawing.out} can't be made: {error}; name another") from error
    if not loaded.codec and loaded.built.model.channels not in (1, 3):
        say(f"these are raw latents of {loaded.built.model.channels} channels: no autoencoder")
    with matmul_precision(drawing.matmul_precision):
        draw = _draw_npz if as_file else _draw_folder
        where = draw(drawing, loaded, generator, labels)
    say(f"{drawing.num} samples of checkpoint {loaded.train_step}: {where}")


def _draw_npz(drawing, loaded, generator, labels) -> epath.Path:
    parts = parts_lib.open_parts(drawing.out, _description(drawing, loaded))
    with progress_bar(drawing.num, "sampling") as bar:
        bar.update(parts.rows)
        batches = generator.batches(
            loaded.params, {"label": labels}, drawing.seed, first=parts.rows
        )
        for batch in batches:
            parts.add(to_uint8(batch))
            bar.update(len(batch))
    parts.join(labels)
    return drawing.out


def matmul_precision(name: str | None):
    """A context with jax's default matmul precision; None leaves the device's own."""
    return jax.default_matmul_precision(name) if name else contextlib.nullcontext()


def sampler_fields(loaded: Loaded, changes: dict[str, Any]) -> dict[str, Any]:
    """The sampler as JSON."""
    fields = dataclasses.asdict(changed_sampler(loaded.built.sampler, changes))
    return fields | {"guidance_interval": list(fields["guidance_interval"])}


def _description(drawing, loaded) -> dict[str, Any]:
    """What decides the samples: parts of another description don't go together."""
    fields = dataclasses.asdict(drawing)
    for name in ("out", "batch_size", "sampler_changes", "autoencoder"):
        del fields[name]
    return fields | {
        "workdir": str(drawing.workdir.absolute()),
        "checkpoint": loaded.train_step,
        "labels": list(drawing.labels),
        "sampler": sampler_fields(loaded, drawing.sampler_changes),
        "autoencoder": loaded.codec.space.identity if loaded.codec else None,
    }


# More wouldn't be looked at.
GRID = 256


def _draw_folder(drawing, loaded, generator, labels) -> epath.Path:
    digits, done, shown = max(len(str(drawing.num - 1)), 5), 0, []
    with progress_bar(drawing.num, "sampling") as bar:
        for batch in generator.batches(loaded.params, {"label": labels}, drawing.seed):
            images = to_uint8(batch)
            if jax.process_index() == 0:
                for i, image in enumerate(images, done):
                    save_png(drawing.out / f"{i:0{digits}d}_class{labels[i]}.png", image)
            shown.extend(images[: GRID - len(shown)])
            done += len(images)
            bar.update(len(images))
    if jax.process_index() == 0:
        save_png(drawing.out / "grid.png", make_grid(np.stack(shown)))
    return drawing.out / "grid.png"

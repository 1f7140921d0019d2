"""Samples of a trained workdir, into a file or a folder."""

import dataclasses
import sys
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh
from tqdm import tqdm

from tp_jax import config as config_lib
from tp_jax.diffusion import SamplerConfig
from tp_jax.errors import UserError
from tp_jax.generation import Generator, cycled_labels
from tp_jax.images import make_grid, save_png, to_uint8
from tp_jax.models import build_model
from tp_jax.parallel.mesh import create_mesh
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


def load(workdir: epath.Path, train_step: int | None = None, *, ema: bool = True) -> Loaded:
    """Loads a workdir, local or gs://, onto all devices here, data-parallel.

    Args:
      train_step: of the checkpoint; the newest by default.
      ema: averaged parameters, or those as trained.

    Raises:
      UserError: there is no such workdir or checkpoint.
    """
    config = read_config(workdir)
    built = config_lib.build(config)
    model, mesh = build_model(built.model), create_mesh(dict(data=-1, fsdp=1, tensor=1, expert=1))
    shapes = abstract_params(model)
    target = with_shardings(shapes, tree_shardings(shapes, mesh))
    with checkpoint_lib.open_manager(workdir) as manager:
        train_step = checkpoint_lib.find_step(manager, train_step)
        params = checkpoint_lib.restore_params(manager, train_step, target, ema=ema)
    num_classes = getattr(config.model, "num_classes", 0)
    return Loaded(model, params, built, mesh, num_classes, train_step)


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
    return Generator(loaded.model, built.objective, sampler, loaded.mesh, batch_size, latent_steps)


@dataclasses.dataclass(frozen=True)
class Drawing:
    """What to draw, and where to; the flags of `tp_jax.sample`."""

    workdir: epath.Path
    out: epath.Path
    num: int = 64
    labels: tuple[int, ...] = ()
    seed: int = 0
    batch_size: int = 64
    sampler_changes: dict[str, Any] = dataclasses.field(default_factory=dict)
    latent_steps: int | None = None
    checkpoint: int | None = None
    ema: bool = True


def draw_samples(drawing: Drawing) -> None:
    """Draws and writes: an npz of `arr_0` uint8 NHWC and `arr_1` labels, or PNGs and a grid.

    Raises:
      UserError: anything that was asked for can't be had; nothing is written then.
    """
    as_file = drawing.out.suffix == ".npz"
    if drawing.out.exists() and drawing.out.is_dir() == as_file:
        kind = "folder" if as_file else "file"
        raise UserError(f"--out={drawing.out} is a {kind}: name FILE.npz or a folder")
    loaded = load(drawing.workdir, drawing.checkpoint, ema=drawing.ema)
    labels = cycled_labels(drawing.labels, drawing.num, loaded.num_classes)
    generator = make_generator(
        loaded, drawing.sampler_changes, drawing.batch_size, drawing.latent_steps
    )
    # Before drawing, so that hours of it aren't lost for want of a folder.
    folder = drawing.out.parent if as_file else drawing.out
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out={drawing.out} can't be made: {error}; name another") from error
    batches = []
    with tqdm(total=drawing.num, unit="img", file=sys.stderr, desc="sampling") as bar:
        for batch in generator.batches(loaded.params, {"label": labels}, drawing.seed):
            batches.append(to_uint8(batch))
            bar.update(len(batch))
    images = np.concatenate(batches)
    if jax.process_index() == 0:
        where = (_write_npz if as_file else _write_folder)(drawing.out, images, labels)
        print(f"{drawing.num} samples of checkpoint {loaded.train_step}: {where}", file=sys.stderr)


def _write_npz(path: epath.Path, images: np.ndarray, labels: np.ndarray) -> epath.Path:
    with path.open("wb") as file:
        np.savez(file, arr_0=images, arr_1=labels)
    return path


def _write_folder(folder: epath.Path, images: np.ndarray, labels: np.ndarray) -> epath.Path:
    digits = len(str(len(images) - 1))
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        save_png(folder / f"{i:0{max(digits, 5)}d}_class{label}.png", image)
    save_png(folder / "grid.png", make_grid(images))
    return folder / "grid.png"

"""Samples of a trained workdir, into a file or a folder."""

import contextlib
import dataclasses
import json
import re
from collections.abc import Sequence
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
from tp_jax.data import check_text, encode
from tp_jax.diffusion import SamplerConfig
from tp_jax.errors import UserError
from tp_jax.generation import Generator, choose_labels
from tp_jax.images import make_grid, save_png, to_uint8
from tp_jax.models import build_model
from tp_jax.output import progress_bar, say
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
      conditions: {"text", "pooled", "null_text", "null_pooled"}, each [N, …].
      encoder: identity of what encoded them.
    """

    texts: tuple[str, ...]
    conditions: dict[str, np.ndarray]
    encoder: str


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


def encode_prompts(loaded: Loaded, texts: Sequence[str], negative: str = "") -> Prompts:
    """Encodes prompts, and the one that guidance leads away from.

    Raises:
      UserError: as `load_text`, or there are none, or one is longer than the encoder takes.
    """
    encoder = load_text(loaded)
    if not texts:
        raise UserError("--prompts is empty: give a prompt, or a file with one on each line")
    for text in (*texts, negative):
        encoder.check(text)
    conditions = encode(encoder, texts, null=negative)
    return Prompts(tuple(texts), conditions, encoder.space.identity)


def read_prompts(given: str) -> tuple[str, ...]:
    """The lines of a file that are not empty, or, where there is no such file, the text itself."""
    path = epath.Path(given)
    # A prompt may be longer than a file's name can be.
    if len(given) > 255 or not path.exists():
        return (given,)
    if path.is_dir():
        raise UserError(f"--prompts={given} is a folder: name a file with a prompt on each line")
    return tuple(line.strip() for line in path.read_text().splitlines() if line.strip())


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


@dataclasses.dataclass(frozen=True)
class Drawing:
    """What to draw, and where to; the flags of `tp_jax.sample`.

    Attributes:
      num: images, going round classes or prompts; None is one a prompt, or 64.
      labels: classes to go round; empty is all of them.
      prompts: for models that take text.
      negative_prompt: what guidance leads away from.
      height, width: of the pictures in pixels; None is as trained.
      uniform: draw classes uniformly instead of going round.
      matmul_precision: of jax, as "highest"; None is the device's own.
      dtype: that the model computes in; None is the config's.
      autoencoder: folder of the autoencoder that decodes; None is the config's.
      text: folder of the text encoders; None is the config's.
      truncate: cut prompts that are longer than the encoder takes.
      thinking: False draws with the base alone, see `without_thinking`.
    """

    workdir: epath.Path
    out: epath.Path
    num: int | None = None
    labels: tuple[int, ...] = ()
    prompts: tuple[str, ...] = ()
    negative_prompt: str = ""
    height: int | None = None
    width: int | None = None
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
    text: str | None = None
    truncate: bool = False
    thinking: bool = True


@dataclasses.dataclass(frozen=True)
class _Subjects:
    """What the N samples are of.

    Attributes:
      conditions, rows: for `Generator.batches`.
      values: [N] labels or prompts, for the npz.
      names: of the files, [N].
      encoder: identity of the text encoder, or None.
    """

    conditions: Any
    rows: np.ndarray
    values: np.ndarray
    names: list[str]
    encoder: str | None = None


def _subjects(drawing: Drawing, loaded: Loaded) -> _Subjects:
    if drawing.prompts or loaded.config.model.kind != "dit":
        if drawing.labels or drawing.uniform:
            raise UserError("--labels and --uniform are of classes: this draws prompts")
        if not drawing.prompts:
            raise UserError(
                f'--prompts is missing: a {loaded.config.model.kind} model takes text; give "text" '
                f"or a file with a prompt on each line"
            )
        prompts = encode_prompts(loaded, drawing.prompts, drawing.negative_prompt)
        num = len(prompts.texts) if drawing.num is None else drawing.num
        if num < 1:
            raise UserError(f"num={num}: must be 1 or more")
        rows = np.arange(num) % len(prompts.texts)
        values = np.array(prompts.texts)[rows]
        names = [_slug(value) for value in values]
        return _Subjects(prompts.conditions, rows, values, names, prompts.encoder)
    if drawing.negative_prompt:
        raise UserError("--negative_prompt is of models that take text: leave it out")
    num = 64 if drawing.num is None else drawing.num
    label_seed = drawing.seed if drawing.uniform else None
    labels = choose_labels(drawing.labels, num, loaded.num_classes, label_seed)
    names = [f"class{label}" for label in labels]
    return _Subjects({"label": labels}, np.arange(num), labels, names)


def _slug(prompt: str) -> str:
    """A prompt as part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60]


def draw_samples(drawing: Drawing) -> None:
    """Draws and writes: an npz of `arr_0` uint8 NHWC and `arr_1` labels or prompts, or PNGs.

    Beside PNGs are a grid of the first and, of prompts, `captions.jsonl`.

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
        text=drawing.text,
        truncate=drawing.truncate,
    )
    if not drawing.thinking:
        loaded, base = without_thinking(loaded)
        say(f"base: {base}")
    size = drawn_size(loaded, drawing.height, drawing.width)
    generator = make_generator(
        loaded, drawing.sampler_changes, drawing.batch_size, drawing.latent_steps, size
    )
    subjects = _subjects(drawing, loaded)
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
        where = draw(drawing, loaded, generator, subjects)
    say(f"{len(subjects.rows)} samples of checkpoint {loaded.train_step}: {where}")


def _draw_npz(drawing, loaded, generator, subjects) -> epath.Path:
    parts = parts_lib.open_parts(drawing.out, _description(drawing, loaded, subjects))
    with progress_bar(len(subjects.rows), "sampling") as bar:
        bar.update(parts.rows)
        batches = generator.batches(
            loaded.params, subjects.conditions, drawing.seed, parts.rows, subjects.rows
        )
        for batch in batches:
            parts.add(to_uint8(batch))
            bar.update(len(batch))
    parts.join(subjects.values)
    return drawing.out


def matmul_precision(name: str | None):
    """A context with jax's default matmul precision; None leaves the device's own."""
    return jax.default_matmul_precision(name) if name else contextlib.nullcontext()


def sampler_fields(loaded: Loaded, changes: dict[str, Any]) -> dict[str, Any]:
    """The sampler as JSON."""
    fields = dataclasses.asdict(changed_sampler(loaded.built.sampler, changes))
    return fields | {"guidance_interval": list(fields["guidance_interval"])}


def _description(drawing, loaded, subjects) -> dict[str, Any]:
    """What decides the samples: parts of another description don't go together."""
    fields = dataclasses.asdict(drawing)
    for name in ("out", "batch_size", "sampler_changes", "autoencoder", "text"):
        del fields[name]
    return fields | {
        "workdir": str(drawing.workdir.absolute()),
        "checkpoint": loaded.train_step,
        "num": len(subjects.rows),
        "labels": list(drawing.labels),
        "prompts": list(drawing.prompts),
        "encoder": subjects.encoder,
        "sampler": sampler_fields(loaded, drawing.sampler_changes),
        "autoencoder": loaded.codec.space.identity if loaded.codec else None,
    }


# More wouldn't be looked at.
GRID = 256


def _draw_folder(drawing, loaded, generator, subjects) -> epath.Path:
    num = len(subjects.rows)
    digits, done, shown = max(len(str(num - 1)), 5), 0, []
    files = [f"{i:0{digits}d}_{name}.png" for i, name in enumerate(subjects.names)]
    batches = generator.batches(
        loaded.params, subjects.conditions, drawing.seed, rows=subjects.rows
    )
    with progress_bar(num, "sampling") as bar:
        for batch in batches:
            images = to_uint8(batch)
            if jax.process_index() == 0:
                for file, image in zip(files[done:], images, strict=False):
                    save_png(drawing.out / file, image)
            shown.extend(images[: GRID - len(shown)])
            done += len(images)
            bar.update(len(images))
    if jax.process_index() == 0:
        save_png(drawing.out / "grid.png", make_grid(np.stack(shown)))
        if drawing.prompts:
            lines = [
                json.dumps({"file": file, "caption": str(prompt)})
                for file, prompt in zip(files, subjects.values, strict=True)
            ]
            (drawing.out / "captions.jsonl").write_text("\n".join(lines) + "\n")
    return drawing.out / "grid.png"

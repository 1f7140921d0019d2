"""Convert published torch weights to folders that this package loads."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from tp_jax.files.hub import origin
from tp_jax.messages.errors import UserError
from tp_jax.messages.progress import say
from tp_jax.models import DiTConfig
from tp_jax.pretrained import autoencoder, dit, inception, sd3
from tp_jax.pretrained.autoencoder import LatentScale, convert_autoencoder, latent_scale
from tp_jax.pretrained.dit import as_sit, infer_dit, is_diffusers, read_dit
from tp_jax.pretrained.files import find_file, load_state_dict
from tp_jax.pretrained.folder import check_new_or_empty, save_folder
from tp_jax.pretrained.inception import convert_inception
from tp_jax.pretrained.published_config import PublishedConfig, read_published_config
from tp_jax.pretrained.recognise import find_prefix, looks_like, without_wrappers
from tp_jax.pretrained.sd3 import infer_sd3, read_sd3
from tp_jax.thinking import ThinkingConfig


@dataclasses.dataclass(frozen=True)
class Conversion:
    """The flags of `tp_jax.convert`.

    Attributes:
      kind: a key of `KINDS`.
      source: file or folder of torch weights.
      out: new or empty folder for the converted weights.
      heads: number of attention heads, for models of unpublished sizes.
      scale, shift: of an autoencoder's latents, where no config.json tells them.
      null_class: the last row of a DiT's label table is the null class.
    """

    kind: str
    source: epath.Path
    out: epath.Path
    heads: int | None = None
    scale: float | None = None
    shift: float | None = None
    null_class: bool = True


@dataclasses.dataclass(frozen=True)
class Source:
    """Torch weights, and what was given with them.

    Attributes:
      state: the weights by name, in torch's layout.
      published: the config.json beside them.
      flags: the flags of the command.
    """

    state: Mapping[str, np.ndarray]
    published: PublishedConfig
    flags: Conversion


def convert(conversion: Conversion) -> None:
    """Convert torch weights to a folder, and print a summary.

    Raises:
      UserError: the weights can't be read or aren't of that kind (the message names the first one
        that doesn't fit), or the folder isn't empty; nothing is written then.
    """
    name, out = conversion.kind, conversion.out
    if name not in KINDS:
        raise UserError(f"--kind={name}: choose one of {', '.join(KINDS)}")
    kind = KINDS[name]
    for flag, unset in FLAGS.items():
        value = getattr(conversion, flag)
        if value != unset and flag not in kind.flags:
            raise UserError(f"--{flag}={value} doesn't apply to --kind={name}: leave it out")
    check_new_or_empty(out)
    file = find_file(conversion.source, kind.subfolder)
    owners = {owner: other for other, row in KINDS.items() for owner in row.classes}
    published = read_published_config(file, kind.classes, owners)
    notes: list[str] = []
    state = load_state_dict(file, notes.append)
    try:
        state = without_wrappers(state)
        notes += _note_of_prefix(state, kind)
        converted = kind.convert(Source(state, published, conversion))
    except UserError as error:
        raise UserError(f"--source={file}: {error}{looks_like(state, name)}") from error
    try:
        description = save_folder(
            out, converted.params, name, converted.config, origin(conversion.source)
        )
    except OSError as error:
        raise UserError(f"--out={out} can't be written: {error}; choose another folder") from error
    for note in (*notes, *converted.notes):
        say(note)
    count = sum(leaf.size for leaf in jax.tree.leaves(converted.params))
    say(f"{name}: {converted.summary}; {count:,} parameters, sha256 {description.identity[:12]}…")
    say(f"written to {out}; use it with {converted.usage}")


def _note_of_prefix(state: Mapping[str, np.ndarray], kind: "Kind") -> list[str]:
    """Return a note on which entries of a file are read, if not all of them."""
    prefix = find_prefix(state, kind.anchors)
    others = [key for key in state if not key.startswith(prefix)]
    if not others:
        return []
    return [
        f"reads the {len(state) - len(others)} weights under {prefix!r}, not the {len(others)} "
        f"others, such as {others[0]}"
    ]


@dataclasses.dataclass(frozen=True)
class Converted:
    """Converted weights, and the text of the summary.

    Attributes:
      params: tree of NumPy arrays.
      config: fields of the model's config, which are written to description.json.
      summary: the sizes of the model.
      usage: the flag that the folder is used with.
      notes: what was assumed.
    """

    params: Any
    config: dict[str, Any]
    summary: str
    usage: str
    notes: tuple[str, ...] = ()


def _convert_dit(source: Source) -> Converted:
    flags, published = source.flags, source.published
    model = infer_dit(source.state, flags.heads, published, null_class=flags.null_class)
    notes = []
    if model.null_class and not published.fields.get("num_embeds_ada_norm"):
        rows = model.label_rows
        notes.append(
            f"the {rows} rows of the label table are read as {rows - 1} classes and the null "
            f"class; if the model was trained without dropout of labels, give --nonull_class"
        )
    if is_diffusers(source.state):
        notes.append(
            "converted to the timestep embedding of facebookresearch/DiT, with which the published "
            "weights were trained; diffusers' own differs slightly (127 for 128 frequencies)"
        )
    names = (
        "image_size", "channels", "out_channels", "patch", "depth", "width", "heads", "mlp_ratio",
        "num_classes", "null_class",
    )  # fmt: skip
    config = {name: getattr(model, name) for name in names}
    config["learned_sigma"] = model.out_channels == 2 * model.channels
    return Converted(
        params=read_dit(source.state, model),
        config=config,
        summary=", ".join(f"{name} {value}" for name, value in config.items()),
        usage=f"--config.init.base={flags.out}",
        notes=tuple(notes),
    )


def _convert_sit(source: Source) -> Converted:
    read = _convert_dit(source)
    fields = {name: value for name, value in read.config.items() if name != "learned_sigma"}
    model = DiTConfig(**fields, thinking=ThinkingConfig(layers=()))
    params, model = as_sit(read.params, model)
    config = {name: getattr(model, name) for name in (*fields, "time_input")}
    return dataclasses.replace(
        read,
        params=params,
        config=config,
        summary=", ".join(f"{name} {value}" for name, value in config.items()),
        usage=f"a flow of shift 1, such as configs/imagenet256.py:sit, and {read.usage}",
    )


def _convert_sd3(source: Source) -> Converted:
    model = infer_sd3(source.state, source.flags.heads, source.published)
    # image_size is left out: images may have any size that the position table covers.
    names = (
        "channels", "out_channels", "patch", "depth", "width", "heads", "text_width",
        "pooled_width", "qk_norm", "dual_attention_layers", "max_grid", "base_grid",
        "grid_offset",
    )  # fmt: skip
    config = {name: getattr(model, name) for name in names}
    return Converted(
        params=read_sd3(source.state, model),
        config=config,
        summary=", ".join(f"{name} {value}" for name, value in config.items()),
        usage=f"--config.init.base={source.flags.out}",
    )


def _convert_autoencoder(source: Source) -> Converted:
    given = LatentScale(source.flags.scale, source.flags.shift)
    model, params = convert_autoencoder(source.state, source.published, given)
    *_, note = latent_scale(source.state, model.channels, source.published, given)
    return Converted(
        params=params,
        config=dataclasses.asdict(model),
        summary=(
            f"{model.channels} latent channels of {model.factor}×{model.factor} pixels, "
            f"latents (z - {model.shift:g})·{model.scale:g}, widths {model.block_widths}"
        ),
        usage=f"--config.autoencoder.path={source.flags.out}",
        notes=(note,) if note else (),
    )


def _convert_inception(source: Source) -> Converted:
    return Converted(
        params=convert_inception(source.state),
        config={},
        summary="2,048 features, 1,008 logits",
        usage=f"tp_jax.evaluate --inception={source.flags.out}",
    )


@dataclasses.dataclass(frozen=True)
class Kind:
    """How weights of one kind are converted.

    Attributes:
      convert: the function that converts them.
      anchors: names of weights that show what stands before all names; see `find_prefix`.
      flags: the flags among `FLAGS` that apply.
      subfolder: subfolder of the model in a diffusers repository.
      classes: the classes that diffusers' config.json may name; without any it isn't read.
    """

    convert: Callable[[Source], Converted]
    anchors: tuple[str, ...]
    flags: tuple[str, ...] = ()
    subfolder: str = ""
    classes: tuple[str, ...] = ()


# Flags that apply to some kinds only, and their values if they aren't given.
FLAGS = {"heads": None, "scale": None, "shift": None, "null_class": True}
# --kind -> how it is converted.
KINDS = {
    "dit": Kind(_convert_dit, dit.ANCHORS, ("heads", "null_class"), "transformer", dit.CLASSES),
    "sit": Kind(_convert_sit, dit.ANCHORS, ("heads", "null_class")),
    "sd3": Kind(_convert_sd3, sd3.ANCHORS, ("heads",), "transformer", sd3.CLASSES),
    "sd-vae": Kind(
        _convert_autoencoder,
        autoencoder.ANCHORS,
        ("scale", "shift"),
        "vae",
        autoencoder.CLASSES,
    ),
    "inception": Kind(_convert_inception, inception.ANCHORS),
}

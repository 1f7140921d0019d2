"""Convert published torch weights to folders that this package loads."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from tp_jax.messages.errors import UserError
from tp_jax.messages.progress import say
from tp_jax.pretrained.autoencoder import convert_autoencoder
from tp_jax.pretrained.dit import infer_dit, read_dit
from tp_jax.pretrained.files import load_state_dict
from tp_jax.pretrained.folder import check_new_or_empty, save_folder
from tp_jax.pretrained.inception import convert_inception
from tp_jax.pretrained.sd3 import infer_sd3, read_sd3

State = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Conversion:
    """The flags of `tp_jax.convert`.

    Attributes:
      kind: a key of `KINDS`.
      source: file or folder of torch weights.
      out: new or empty folder for the converted weights.
      heads: number of attention heads, for models of unpublished sizes.
    """

    kind: str
    source: epath.Path
    out: epath.Path
    heads: int | None = None


def convert(conversion: Conversion) -> None:
    """Convert torch weights to a folder, and print a summary.

    Raises:
      UserError: the weights can't be read or aren't of that kind (the message names the first one
        that doesn't fit), or the folder isn't empty; nothing is written then.
    """
    kind, out = conversion.kind, conversion.out
    if kind not in KINDS:
        raise UserError(f"--kind={kind}: choose one of {', '.join(KINDS)}")
    if conversion.heads is not None and kind not in KINDS_WITH_HEADS:
        raise UserError(f"--heads={conversion.heads} doesn't apply to --kind={kind}: leave it out")
    check_new_or_empty(out)
    state = load_state_dict(conversion.source, SUBFOLDERS.get(kind, ""))
    converted = KINDS[kind](state, conversion)
    try:
        description = save_folder(
            out, converted.params, kind, converted.config, conversion.source.name
        )
    except OSError as error:
        raise UserError(f"--out={out} can't be written: {error}; choose another folder") from error
    count = sum(leaf.size for leaf in jax.tree.leaves(converted.params))
    say(f"{kind}: {converted.summary}; {count:,} parameters, sha256 {description.identity[:12]}…")
    say(f"written to {out}; use it with {converted.usage}")


@dataclasses.dataclass(frozen=True)
class Converted:
    """Converted weights, and the text of the summary.

    Attributes:
      params: tree of NumPy arrays.
      config: fields of the model's config, which are written to description.json.
      summary: the sizes of the model.
      usage: the flag that the folder is used with.
    """

    params: Any
    config: dict[str, Any]
    summary: str
    usage: str


def _convert_dit(state: State, conversion: Conversion) -> Converted:
    model = infer_dit(state, conversion.heads)
    names = (
        "image_size", "channels", "out_channels", "patch", "depth", "width", "heads", "mlp_ratio",
        "num_classes",
    )  # fmt: skip
    config = {name: getattr(model, name) for name in names}
    config["learned_sigma"] = model.out_channels == 2 * model.channels
    return Converted(
        params=read_dit(state, model),
        config=config,
        summary=", ".join(f"{name} {value}" for name, value in config.items()),
        usage=f"--config.init.base={conversion.out}",
    )


def _convert_sd3(state: State, conversion: Conversion) -> Converted:
    model = infer_sd3(state, conversion.heads)
    # image_size is left out: images may have any size that the position table covers.
    names = (
        "channels", "out_channels", "patch", "depth", "width", "heads", "text_width",
        "pooled_width", "qk_norm", "dual_attention_layers", "max_grid", "base_grid",
    )  # fmt: skip
    config = {name: getattr(model, name) for name in names}
    return Converted(
        params=read_sd3(state, model),
        config=config,
        summary=", ".join(f"{name} {value}" for name, value in config.items()),
        usage=f"--config.init.base={conversion.out}",
    )


def _convert_autoencoder(state: State, conversion: Conversion) -> Converted:
    model, params = convert_autoencoder(state)
    return Converted(
        params=params,
        config=dataclasses.asdict(model),
        summary=(
            f"{model.channels} latent channels of {model.factor}×{model.factor} pixels, "
            f"latents (z - {model.shift:g})·{model.scale:g}, widths {model.block_widths}"
        ),
        usage=f"--config.autoencoder.path={conversion.out}",
    )


def _convert_inception(state: State, conversion: Conversion) -> Converted:
    return Converted(
        params=convert_inception(state),
        config={},
        summary="2,048 features, 1,008 logits",
        usage=f"tp_jax.evaluate --inception={conversion.out}",
    )


# --kind -> function that converts a state dict.
KINDS: dict[str, Callable[[State, Conversion], Converted]] = {
    "dit": _convert_dit,
    "sd3": _convert_sd3,
    "sd-vae": _convert_autoencoder,
    "inception": _convert_inception,
}
# Kinds that accept --heads.
KINDS_WITH_HEADS = ("dit", "sd3")
# --kind -> subfolder of the model in a diffusers repository.
SUBFOLDERS = {"sd3": "transformer", "sd-vae": "vae"}

"""Published torch weights onto disk, as this package loads them."""

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
from tp_jax.pretrained.folder import check_free, save_folder
from tp_jax.pretrained.inception import convert_inception
from tp_jax.pretrained.sd3 import infer_sd3, read_sd3

State = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What to convert; the flags of `tp_jax.convert`."""

    kind: str
    source: epath.Path
    out: epath.Path
    heads: int | None = None


def convert(conversion: Conversion) -> None:
    """Reads torch weights, writes a folder, and says what it holds.

    Raises:
      UserError: the weights aren't of that kind, naming the first that doesn't fit, or there is
        no reading them, or the folder isn't free; nothing is written then.
    """
    kind, out = conversion.kind, conversion.out
    if kind not in KINDS:
        raise UserError(f"--kind={kind}: choose one of {', '.join(KINDS)}")
    if conversion.heads is not None and kind not in HEADED:
        raise UserError(f"--heads={conversion.heads}: {kind} has none to choose; leave it out")
    check_free(out)
    state = load_state_dict(conversion.source, PARTS.get(kind, ""))
    converted = KINDS[kind](state, conversion)
    try:
        description = save_folder(
            out, converted.params, kind, converted.config, conversion.source.name
        )
    except OSError as error:
        raise UserError(f"--out={out} can't be written: {error}; name another") from error
    count = sum(leaf.size for leaf in jax.tree.leaves(converted.params))
    say(f"{kind}: {converted.size}; {count:,} parameters, sha256 {description.identity[:12]}…")
    say(f"written to {out}; use it with {converted.use}")


@dataclasses.dataclass(frozen=True)
class Converted:
    """Converted weights, and what to tell about them."""

    params: Any
    config: dict[str, Any]
    size: str
    use: str


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
        size=", ".join(f"{name} {value}" for name, value in config.items()),
        use=f"--config.init.base={conversion.out}",
    )


def _convert_sd3(state: State, conversion: Conversion) -> Converted:
    model = infer_sd3(state, conversion.heads)
    # Images may have any size that the position table holds, so theirs is left out.
    names = (
        "channels", "out_channels", "patch", "depth", "width", "heads", "text_width",
        "pooled_width", "qk_norm", "dual_attention_layers", "max_grid", "base_grid",
    )  # fmt: skip
    config = {name: getattr(model, name) for name in names}
    return Converted(
        params=read_sd3(state, model),
        config=config,
        size=", ".join(f"{name} {value}" for name, value in config.items()),
        use=f"--config.init.base={conversion.out}",
    )


def _convert_autoencoder(state: State, conversion: Conversion) -> Converted:
    model, params = convert_autoencoder(state)
    return Converted(
        params=params,
        config=dataclasses.asdict(model),
        size=(
            f"{model.channels} latent channels of {model.factor}×{model.factor} pixels, "
            f"latents (z - {model.shift:g})·{model.scale:g}, widths {model.block_widths}"
        ),
        use=f"--config.autoencoder.path={conversion.out}",
    )


def _convert_inception(state: State, conversion: Conversion) -> Converted:
    return Converted(
        params=convert_inception(state),
        config={},
        size="2,048 features, 1,008 logits",
        use=f"tp_jax.evaluate --inception={conversion.out}",
    )


# `--kind` -> what converts it.
KINDS: dict[str, Callable[[State, Conversion], Converted]] = {
    "dit": _convert_dit,
    "sd3": _convert_sd3,
    "sd-vae": _convert_autoencoder,
    "inception": _convert_inception,
}
# Those whose attention heads can be said.
HEADED = ("dit", "sd3")
# `--kind` -> the subfolder of diffusers' repositories that it is in.
PARTS = {"sd3": "transformer", "sd-vae": "vae"}

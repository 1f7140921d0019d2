"""Convert the weights of Stable Diffusion's autoencoder, from diffusers' or the original layout.

They are written in diffusers' layout.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from tp_jax.files.hub import local
from tp_jax.messages.errors import UserError
from tp_jax.models.autoencoder import Autoencoder, AutoencoderConfig, Scale, Shift
from tp_jax.pretrained.folder import load_folder
from tp_jax.pretrained.published_config import PublishedConfig
from tp_jax.pretrained.recognise import find_prefix
from tp_jax.pretrained.state_dict import StateDict, stack_qkv, write_state_dict
from tp_jax.values import checked

KIND = "sd-vae"
# Names of weights that an autoencoder has in every layout.
ANCHORS = ("decoder.conv_in.weight", "encoder.conv_in.weight")
# The class in diffusers' config.json.
CLASSES = ("AutoencoderKL",)
# Entries of original checkpoints that only training needs: the losses and the moving averages.
TRAINING_ONLY = r"(loss|model_ema)\."
# What a full checkpoint in the original layout holds beside the autoencoder -> whose scale and
# shift of the latents it has.
OWNERS = (
    (r"(.*\.)?double_blocks\.", "FLUX"),
    (r"conditioner\.embedders\.", "Stable Diffusion XL"),
    (r"(.*\.)?joint_blocks\.", "Stable Diffusion 3"),
    (r"cond_stage_model\.", "Stable Diffusion 1 and 2"),
)
# Weight files don't contain the scale and shift of the latents.
SCALE_AND_SHIFT = {
    "Stable Diffusion 1 and 2": (0.18215, 0.0),
    "Stable Diffusion XL": (0.13025, 0.0),
    "Stable Diffusion 3": (1.5305, 0.0609),
    "FLUX": (0.3611, 0.1159),
}
# Latent channels -> the autoencoder that is assumed if nothing says which it is.
ASSUMED = {4: "Stable Diffusion 1 and 2", 16: "Stable Diffusion 3"}


@dataclasses.dataclass(frozen=True)
class WeightNames:
    """Weight names in one layout.

    In `up` and `upsample`, `level` counts the levels from the pixels inwards, and `reverse` counts
    them from the latents outwards. `attention_parts` are the norm, the projections to queries, keys
    and values, and the output projection.
    """

    down: str = "encoder.down_blocks.{level}.resnets.{layer}."
    downsample: str = "encoder.down_blocks.{level}.downsamplers.0.conv"
    up: str = "decoder.up_blocks.{reverse}.resnets.{layer}."
    upsample: str = "decoder.up_blocks.{reverse}.upsamplers.0.conv"
    mid: tuple[str, str] = ("mid_block.resnets.0.", "mid_block.resnets.1.")
    attention: str = "mid_block.attentions.0."
    attention_parts: tuple[str, ...] = ("group_norm", "to_q", "to_k", "to_v", "to_out.0")
    shortcut: str = "conv_shortcut"
    norm_out: str = "conv_norm_out"


DIFFUSERS = WeightNames()
# Files from before diffusers renamed the attention weights, such as sd-vae-ft-ema.
OLD_DIFFUSERS = WeightNames(attention_parts=("group_norm", "query", "key", "value", "proj_attn"))
ORIGINAL = WeightNames(
    down="encoder.down.{level}.block.{layer}.",
    downsample="encoder.down.{level}.downsample.conv",
    up="decoder.up.{level}.block.{layer}.",
    upsample="decoder.up.{level}.upsample.conv",
    mid=("mid.block_1.", "mid.block_2."),
    attention="mid.attn_1.",
    attention_parts=("norm", "q", "k", "v", "proj_out"),
    shortcut="nin_shortcut",
    norm_out="norm_out",
)


@dataclasses.dataclass(frozen=True)
class LoadedAutoencoder:
    """A converted autoencoder.

    Attributes:
      model: the Flax module.
      params: parameters for `model.apply({"params": params}, …)`. They are float32 NumPy arrays:
        move them to the devices once, with `jax.device_put`.
      config: sizes, and the scale and shift of the latents.
      identity: SHA-256 of the weights; stored with latents, so that those of another autoencoder
        are refused.
    """

    model: Autoencoder
    params: Any
    config: AutoencoderConfig
    identity: str


def load_autoencoder(folder: epath.PathLike, dtype: str = "float32") -> LoadedAutoencoder:
    """Load a folder that `tp_jax.convert --kind=sd-vae` wrote.

    Args:
      folder: the folder.
      dtype: compute dtype, "float32" or "bfloat16".

    Raises:
      UserError: the folder doesn't exist, is incomplete, or holds another kind of weights.
    """
    description, params = load_folder(local(folder), KIND)
    fields: dict[str, Any] = dict(description.config)
    try:
        fields["block_widths"] = tuple(fields["block_widths"])
        config = AutoencoderConfig(**fields)
    except (KeyError, TypeError, UserError) as error:
        raise UserError(
            f"{folder}: the config in description.json isn't that of an autoencoder ({error}): "
            f"convert the weights again"
        ) from error
    return LoadedAutoencoder(Autoencoder(config, dtype), params, config, description.identity)


@dataclasses.dataclass(frozen=True)
class LatentScale:
    """The scale and shift of latents: the diffusion model works on (z - shift)·scale.

    Attributes:
      scale, shift: None if they aren't known.
    """

    scale: float | None = None
    shift: float | None = None

    def __post_init__(self) -> None:
        if self.scale is not None:
            checked("--scale", self.scale, Scale)
        if self.shift is not None:
            checked("--shift", self.shift, Shift)


def convert_autoencoder(
    state: Mapping[str, np.ndarray],
    published: PublishedConfig = PublishedConfig(),
    given: LatentScale = LatentScale(),
) -> tuple[AutoencoderConfig, Any]:
    """Convert a state dict in diffusers' current, diffusers' old or the original layout.

    From a full checkpoint in the original layout, only the weights of the autoencoder are read.
    Entries under "loss." and "model_ema." are ignored: they are only needed for training.

    Args:
      state: the state dict.
      published: the config.json beside it.
      given: scale and shift from the user; each by default that of `published`, else that of the
        published autoencoder that the weights look like.

    Returns:
      The config, and the parameters of our `Autoencoder`.

    Raises:
      UserError: a weight is missing, unused, NaN, infinite or has another shape, or `published`
        contradicts the weights or `given`.
    """
    weights = StateDict(state, find_prefix(state, ANCHORS))
    if weights.count(r"encoder\.down\.(\d+)\."):
        names = ORIGINAL
        weights.drop(TRAINING_ONLY)
    else:
        old = OLD_DIFFUSERS.attention + OLD_DIFFUSERS.attention_parts[1]
        names = OLD_DIFFUSERS if f"encoder.{old}.weight" in weights else DIFFUSERS
    config = _infer_config(weights, names, published)
    scale, shift, _ = latent_scale(state, config.channels, published, given)
    config = dataclasses.replace(config, scale=scale, shift=shift)
    return config, _Reader(weights, names, config).read()


def write_autoencoder(params: Any, config: AutoencoderConfig) -> dict[str, np.ndarray]:
    """Return the state dict, in diffusers' layout, from which parameters are read.

    Args:
      params: the parameters of our `Autoencoder`, a tree of float32 arrays.
      config: of the autoencoder.
    """
    return write_state_dict(lambda weights: _Reader(weights, DIFFUSERS, config).read(), params)


def diffusers_config(config: AutoencoderConfig) -> dict[str, Any]:
    """Return the config.json of an autoencoder in diffusers' layout."""
    levels = len(config.block_widths)
    return {
        "_class_name": CLASSES[0],
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": config.channels,
        "block_out_channels": list(config.block_widths),
        "layers_per_block": config.layers_per_block,
        "norm_num_groups": config.norm_groups,
        "scaling_factor": config.scale,
        "shift_factor": config.shift or None,
        "use_quant_conv": config.quant_convs,
        "use_post_quant_conv": config.quant_convs,
        **_only(levels),
    }


def _only(levels: int) -> dict[str, Any]:
    """Return the only values of some fields of diffusers' config.json that our model computes."""
    return {
        "act_fn": "silu",
        "mid_block_add_attention": True,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }


def _infer_config(
    weights: StateDict, names: WeightNames, published: PublishedConfig
) -> AutoencoderConfig:
    """Infer the config, without the scale, from the shapes of the weights and config.json."""
    root, _, rest = names.down.partition("{level}.")
    levels = weights.count(rf"{root}(\d+)\.")
    layers = weights.count(rf"{root}0\.{rest.partition('{')[0]}(\d+)\.")
    # Other files have no levels; asking for level 0 then raises an error that names its weight.
    widths = [
        weights.shape(names.down.format(level=level, layer=0) + "conv1.weight", 4)[0]
        for level in range(max(levels, 1))
    ]
    channels = weights.shape("decoder.conv_in.weight", 4)[1]
    quant_convs = "quant_conv.weight" in weights
    published.check(
        latent_channels=channels,
        block_out_channels=widths,
        layers_per_block=layers,
        in_channels=3,
        out_channels=3,
        use_quant_conv=quant_convs,
        use_post_quant_conv="post_quant_conv.weight" in weights,
    )
    published.check_only(**_only(levels))
    for name in ("latents_mean", "latents_std"):
        if published.fields.get(name) is not None:
            raise UserError(
                f"{published.path}: {name} gives a value for every latent channel, but only one "
                f"scale and shift for all channels is supported: give another autoencoder"
            )
    groups = published.get("norm_num_groups")
    return AutoencoderConfig(
        channels=channels,
        block_widths=tuple(widths),
        layers_per_block=layers,
        quant_convs=quant_convs,
        **({} if groups is None else dict(norm_groups=groups)),
    )


def latent_scale(
    state: Mapping[str, Any], channels: int, published: PublishedConfig, given: LatentScale
) -> tuple[float, float, str]:
    """Return scale and shift of the latents, and a note on where they are from if it is a guess.

    The arguments are those of `convert_autoencoder`, and the number of latent channels.

    Raises:
      UserError: flags and config.json contradict each other, or nothing tells the scale.
    """
    scale, shift = published.get("scaling_factor", float), published.get("shift_factor", float)
    if scale is not None and shift is None:
        shift = 0.0  # Diffusers has null where there is no shift.
    for name, flag, field in (("scale", given.scale, scale), ("shift", given.shift, shift)):
        if flag is not None and field is not None and flag != field:
            raise UserError(
                f"--{name}={flag}, but {published.path} says {field}: leave the flag out, or give "
                f"the config.json of these weights"
            )
    if scale is not None:
        checked(f"{published.path}: scaling_factor", scale, Scale)
        checked(f"{published.path}: shift_factor", shift or 0.0, Shift)
    scale = given.scale if scale is None else scale
    shift = given.shift if shift is None else shift
    if scale is not None:
        return scale, shift or 0.0, ""
    told = [owner for pattern, owner in OWNERS if any(re.match(pattern, key) for key in state)]
    if not told and channels not in ASSUMED:
        raise UserError(
            f"decoder.conv_in.weight has {channels} latent channels: the autoencoders of Stable "
            f"Diffusion have {' or '.join(map(str, ASSUMED))}; for another one, give the scale and "
            f"shift of its latents with --scale and --shift, or a folder with its config.json"
        )
    owner = told[0] if told else ASSUMED[channels]
    scale, default = SCALE_AND_SHIFT[owner]
    shift = default if shift is None else shift
    others = "; ".join(f"{name} {a:g} and {b:g}" for name, (a, b) in SCALE_AND_SHIFT.items()
                       if name != owner)  # fmt: skip
    why = "what else is in the file" if told else f"its {channels} channels, which doesn't prove it"
    note = (
        f"no config.json tells the scale and shift of the latents: took {scale:g} and {shift:g} of "
        f"{owner}, from {why}. Others: {others}; set them with --scale and --shift"
    )
    return scale, shift, note


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Converts the weights module by module."""

    weights: StateDict
    names: WeightNames
    config: AutoencoderConfig

    def read(self) -> dict[str, Any]:
        params = {"encoder": self.encoder(), "decoder": self.decoder()}
        if self.config.quant_convs:
            conv, c = self.weights.conv, self.config.channels
            params["quant"] = conv("quant_conv", 2 * c, 2 * c, 1)
            params["post_quant"] = conv("post_quant_conv", c, c, 1)
        self.weights.check_all_used()
        return params

    def norm(self, key: str, width: int) -> dict[str, np.ndarray]:
        take = self.weights.take
        return {"scale": take(f"{key}.weight", width), "bias": take(f"{key}.bias", width)}

    def res_block(self, prefix: str, inputs: int, width: int) -> dict[str, Any]:
        conv = self.weights.conv
        params = {
            "norm1": self.norm(prefix + "norm1", inputs),
            "conv1": conv(prefix + "conv1", inputs, width, 3),
            "norm2": self.norm(prefix + "norm2", width),
            "conv2": conv(prefix + "conv2", width, width, 3),
        }
        if inputs != width:
            params["shortcut"] = conv(prefix + self.names.shortcut, inputs, width, 1)
        return params

    def mid(self, network: str) -> dict[str, Any]:
        names, width = self.names, self.config.block_widths[-1]
        norm, *layers = (f"{network}.{names.attention}{part}" for part in names.attention_parts)
        q, k, v, proj = (self.attention_layer(key, width) for key in layers)
        first, second = (self.res_block(f"{network}.{block}", width, width) for block in names.mid)
        return {
            "res_0": first,
            "norm": self.norm(norm, width),
            "qkv": stack_qkv(q, k, v),
            "proj": proj,
            "res_1": second,
        }

    def attention_layer(self, key: str, width: int) -> dict[str, np.ndarray]:
        # The original layout stores these linear layers as 1×1 convolutions.
        if self.names is ORIGINAL:
            layer = self.weights.conv(key, width, width, 1)
            return layer | {"kernel": layer["kernel"][0, 0]}
        return self.weights.linear(key, width, width)

    def encoder(self) -> dict[str, Any]:
        cfg, conv, names = self.config, self.weights.conv, self.names
        inputs, last = cfg.block_widths[0], len(cfg.block_widths) - 1
        params = {"conv_in": conv("encoder.conv_in", 3, inputs, 3)}
        for level, width in enumerate(cfg.block_widths):
            for layer in range(cfg.layers_per_block):
                prefix = names.down.format(level=level, layer=layer)
                params[f"level_{level}_res_{layer}"] = self.res_block(prefix, inputs, width)
                inputs = width
            if level < last:
                key = names.downsample.format(level=level)
                params[f"level_{level}_down"] = conv(key, width, width, 3)
        params["mid"] = self.mid("encoder")
        params["norm_out"] = self.norm(f"encoder.{names.norm_out}", inputs)
        params["conv_out"] = conv("encoder.conv_out", inputs, 2 * cfg.channels, 3)
        return params

    def decoder(self) -> dict[str, Any]:
        cfg, conv, names = self.config, self.weights.conv, self.names
        inputs, last = cfg.block_widths[-1], len(cfg.block_widths) - 1
        params = {"conv_in": conv("decoder.conv_in", cfg.channels, inputs, 3)}
        params["mid"] = self.mid("decoder")
        for level, width in reversed(list(enumerate(cfg.block_widths))):
            indices = dict(level=level, reverse=last - level)
            for layer in range(cfg.layers_per_block + 1):
                prefix = names.up.format(layer=layer, **indices)
                params[f"level_{level}_res_{layer}"] = self.res_block(prefix, inputs, width)
                inputs = width
            if level:
                key = names.upsample.format(**indices)
                params[f"level_{level}_up"] = conv(key, width, width, 3)
        params["norm_out"] = self.norm(f"decoder.{names.norm_out}", inputs)
        params["conv_out"] = conv("decoder.conv_out", inputs, 3, 3)
        return params

"""Convert the weights of a DiT, from and to the layout of facebookresearch/DiT or of diffusers."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from tp_jax.messages.errors import UserError
from tp_jax.models import DiTConfig
from tp_jax.models.dit_config import SIZES
from tp_jax.models.layers import position_embedding
from tp_jax.pretrained.published_config import PublishedConfig
from tp_jax.pretrained.recognise import find_prefix
from tp_jax.pretrained.state_dict import StateDict, square_side, stack_layers, write_state_dict
from tp_jax.thinking import ThinkingConfig

TIME_FEATURES = 256
HEADS = {size["width"]: size["heads"] for size in SIZES.values()}
# The classes in diffusers' config.json, and the only values of some fields that our model computes.
CLASSES = ("DiTTransformer2DModel", "Transformer2DModel")
ONLY = {
    "activation_fn": "gelu-approximate",
    "norm_type": "ada_norm_zero",
    "attention_bias": True,
    "norm_elementwise_affine": False,
}


@dataclasses.dataclass(frozen=True)
class WeightNames:
    """Weight names in one layout.

    `qkv` is one packed linear layer, or one layer each for queries, keys and values. `time` and
    `labels` are the embeddings of the timestep and the label; diffusers stores copies of them in
    every block.
    """

    patch_embed: str = "x_embedder.proj"
    position_table: str = "pos_embed"
    time: tuple[str, str] = ("t_embedder.mlp.0", "t_embedder.mlp.2")
    labels: str = "y_embedder.embedding_table.weight"
    block: str = "blocks."
    adaln: str = "adaLN_modulation.1"
    qkv: tuple[str, ...] = ("attn.qkv",)
    proj: str = "attn.proj"
    mlp: tuple[str, str] = ("mlp.fc1", "mlp.fc2")
    final: tuple[str, str] = ("final_layer.adaLN_modulation.1", "final_layer.linear")


ORIGINAL = WeightNames()
# Embeddings in each block of diffusers' layout.
COPIES = "norm1.emb."
DIFFUSERS = WeightNames(
    patch_embed="pos_embed.proj",
    position_table="pos_embed.pos_embed",
    time=(
        f"transformer_blocks.0.{COPIES}timestep_embedder.linear_1",
        f"transformer_blocks.0.{COPIES}timestep_embedder.linear_2",
    ),
    labels=f"transformer_blocks.0.{COPIES}class_embedder.embedding_table.weight",
    block="transformer_blocks.",
    adaln="norm1.linear",
    qkv=("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    proj="attn1.to_out.0",
    mlp=("ff.net.0.proj", "ff.net.2"),
    final=("proj_out_1", "proj_out_2"),
)
# Names of weights that a DiT has in the original layout, then in diffusers' layout.
ANCHORS = (
    f"{ORIGINAL.patch_embed}.weight", f"{DIFFUSERS.patch_embed}.weight",
    ORIGINAL.labels, DIFFUSERS.labels,
)  # fmt: skip


def infer_dit(
    state: Mapping[str, np.ndarray],
    heads: int | None = None,
    published: PublishedConfig = PublishedConfig(),
    *,
    null_class: bool = True,
) -> DiTConfig:
    """Infer the config of a DiT, without thinking layers, from the shapes of its weights.

    Args:
      state: a state dict in the layout of facebookresearch/DiT or of diffusers.
      heads: number of attention heads, which the shapes don't determine; by default that of
        `published`, else that of the published DiT of the same width.
      published: the config.json beside the weights. Weights in diffusers' layout have no position
        table, so that only this file determines the image size.
      null_class: the last row of the label table is the null class. False if all rows are classes,
        as in a model that was trained without dropout of labels.

    Raises:
      UserError: a weight that determines the size is missing, the shapes aren't those of a DiT, or
        `published` contradicts them.
    """
    weights, names = _open_layout(state)
    width, channels, patch, _ = weights.shape(f"{names.patch_embed}.weight", 4)
    (outputs,) = weights.shape(f"{names.final[1]}.bias", 1)
    (hidden,) = weights.shape(f"{names.block}0.{names.mlp[0]}.bias", 1)
    rows, _ = weights.shape(names.labels, 2)
    heads = published.heads(heads)
    if names.position_table in weights or names is ORIGINAL:
        _, tokens, width = weights.shape(names.position_table, 3)
        image_size = patch * square_side(tokens, names.position_table)
    elif (image_size := published.get("sample_size")) is None:
        raise UserError(
            "the image size isn't known, since the weights have no position table and no "
            "config.json with sample_size is beside them: give the folder with both"
        )
    if heads is None and width not in HEADS:
        raise UserError(
            f"no published DiT has width {width}, so the number of attention heads is unknown: "
            f"give --heads"
        )
    if outputs not in (patch**2 * channels, 2 * patch**2 * channels):
        raise UserError(
            f"{names.final[1]}.bias has {outputs} outputs: a DiT on {channels} channels has "
            f"{patch**2 * channels}, or twice that with a learned variance"
        )
    config = DiTConfig(
        image_size=image_size,
        channels=channels,
        out_channels=outputs // patch**2,
        patch=patch,
        depth=weights.count(rf"{names.block}(\d+)\."),
        width=width,
        heads=HEADS[width] if heads is None else heads,
        mlp_ratio=hidden // width,
        num_classes=rows - null_class,
        null_class=null_class,
        thinking=ThinkingConfig(layers=()),
    )
    _check_published(published, config)
    return config


def is_diffusers(state: Mapping[str, np.ndarray]) -> bool:
    """Return whether the weights of a DiT are in diffusers' layout."""
    return _open_layout(state)[1] is DIFFUSERS


def _open_layout(state: Mapping[str, np.ndarray]) -> tuple[StateDict, WeightNames]:
    weights = StateDict(state, find_prefix(state, ANCHORS))
    return weights, DIFFUSERS if weights.count(rf"{DIFFUSERS.block}(\d+)\.") else ORIGINAL


def _check_published(published: PublishedConfig, config: DiTConfig) -> None:
    """Raise a UserError if diffusers' config.json contradicts the weights, or isn't our DiT."""
    published.check(
        attention_head_dim=config.width // config.heads,
        num_layers=config.depth,
        in_channels=config.channels,
        out_channels=config.out_channels,
        patch_size=config.patch,
        sample_size=config.image_size,
        num_embeds_ada_norm=config.num_classes,
    )
    published.check_only(**ONLY)


def read_dit(state: Mapping[str, np.ndarray], config: DiTConfig) -> dict[str, Any]:
    """Convert a state dict to the "base" parameters of our DiT.

    Args:
      state: a state dict in any layout that `infer_dit` accepts.
      config: the result of `infer_dit`.

    Raises:
      UserError: a weight is missing, unused, NaN, infinite or has another shape, or the position
        table isn't the sine-cosine table that our model computes.
    """
    return _read(*_open_layout(state), config)


def as_sit(base: dict[str, Any], config: DiTConfig) -> tuple[dict[str, Any], DiTConfig]:
    """Turn the weights of a SiT, read as those of a DiT, into a DiT that predicts our velocity.

    SiT's path is x_t = t·data + (1 - t)·noise, and it predicts data - noise. With σ = 1 - t that is
    the path of `RectifiedFlow`, whose velocity has the other sign, and whose timestep is
    1000·(1 - t). A second half of the outputs, which SiT's own sampling drops, is left out.

    Source: Ma et al., arXiv 2401.08740; willisma/SiT.

    Args:
      base, config: from `read_dit` and `infer_dit`.
    """

    def velocity(array: np.ndarray) -> np.ndarray:
        # [..., p·p·outputs] -> the first C outputs of each pixel, with the other sign
        pixels = array.reshape(*array.shape[:-1], config.patch**2, config.out_channels)
        kept = pixels[..., : config.channels]
        return -kept.reshape(*array.shape[:-1], config.patch**2 * config.channels)

    out = {name: velocity(array) for name, array in base["final"]["out"].items()}
    changed = dataclasses.replace(config, out_channels=config.channels, time_input="data_share")
    return base | {"final": base["final"] | {"out": out}}, changed


def write_dit(base: Any, config: DiTConfig, *, diffusers: bool = False) -> dict[str, np.ndarray]:
    """Return the state dict of a DiT: what `read_dit` reads the base parameters from.

    Args:
      base: the "base" parameters, a tree of float32 arrays.
      config: of the model.
      diffusers: in diffusers' layout, else in that of facebookresearch/DiT.
    """
    names = DIFFUSERS if diffusers else ORIGINAL
    return write_state_dict(lambda weights: _read(weights, names, config), base)


def diffusers_config(config: DiTConfig) -> dict[str, Any]:
    """Return the config.json of a DiT in diffusers' layout."""
    return {
        "_class_name": CLASSES[0],
        "num_attention_heads": config.heads,
        "attention_head_dim": config.width // config.heads,
        "in_channels": config.channels,
        "out_channels": config.out_channels,
        "num_layers": config.depth,
        "sample_size": config.image_size,
        "patch_size": config.patch,
        "num_embeds_ada_norm": config.num_classes,
        "norm_eps": 1e-6,
        **ONLY,
    }


def _read(weights: StateDict, names: WeightNames, config: DiTConfig) -> dict[str, Any]:
    width, grid = config.width, np.arange(config.image_size // config.patch)
    if names.position_table in weights or names is ORIGINAL:
        weights.check_position_table(names.position_table, position_embedding(width, grid, grid))

    def block(layer: int) -> dict[str, Any]:
        prefix = f"{names.block}{layer}."
        widths = (width, config.mlp_ratio * width, width)
        if len(names.qkv) == 1:
            qkv = weights.packed_qkv(prefix + names.qkv[0], width)
        else:
            qkv = weights.separate_qkv(*(prefix + key for key in names.qkv), width=width)
        return {
            "adaln": weights.linear(prefix + names.adaln, width, 6 * width),
            "qkv": qkv,
            "proj": weights.linear(prefix + names.proj, width, width),
            "mlp": weights.mlp(prefix + names.mlp[0], prefix + names.mlp[1], widths),
        }

    if names is DIFFUSERS:
        _drop_copies(weights, config)
    # The last row is the null class of classifier-free guidance, in torch and here.
    table = weights.take(names.labels, config.label_rows, width)
    outputs = config.patch**2 * config.out_channels
    base = {
        "patch_embed": weights.patch_embed(names.patch_embed, config.channels, width, config.patch),
        "time_embed": weights.mlp(*names.time, (TIME_FEATURES, width, width)),
        "label_embed": {"embedding": table},
        "blocks": stack_layers(block, range(config.depth)),
        "final": {
            "adaln": weights.linear(names.final[0], width, 2 * width),
            "out": weights.linear(names.final[1], width, outputs),
        },
    }
    weights.check_all_used()
    return base


def _drop_copies(weights: StateDict, config: DiTConfig) -> None:
    """Remove the embeddings of all blocks but the first, whose copies they must be."""
    width = config.width
    first, shapes = f"{DIFFUSERS.block}0.", {DIFFUSERS.labels: (config.label_rows, width)}
    for name, inputs in zip(DIFFUSERS.time, (TIME_FEATURES, width), strict=True):
        shapes |= {f"{name}.weight": (width, inputs), f"{name}.bias": (width,)}
    for name, shape in shapes.items():
        for layer in range(1, config.depth):
            weights.check_copy(name.replace(first, f"{DIFFUSERS.block}{layer}."), name, *shape)

"""Convert the weights of Stable Diffusion 3 and 3.5: diffusers' and the original layout.

D width, G side of the position table in patches.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from tp_jax.messages.errors import UserError
from tp_jax.models import MMDiTConfig
from tp_jax.models.layers import position_embedding
from tp_jax.models.mmdit_config import LARGEST_GRID
from tp_jax.pretrained.published_config import PublishedConfig
from tp_jax.pretrained.recognise import find_prefix
from tp_jax.pretrained.state_dict import (
    StateDict,
    square_side,
    stack_layers,
    swap_halves,
    write_state_dict,
)
from tp_jax.thinking import ThinkingConfig

TIME_FEATURES = 256
# Features per attention head in all published models.
HEAD_WIDTH = 64
# Names of weights that this model has in the original layout, then in diffusers' layout.
ANCHORS = ("x_embedder.proj.weight", "pos_embed.proj.weight", "pos_embed.pos_embed", "pos_embed")
# The class in diffusers' config.json.
CLASSES = ("SD3Transformer2DModel",)


@dataclasses.dataclass(frozen=True)
class WeightNames:
    """Weight names in one layout.

    `qkv`, `text_qkv` and `dual_qkv` are one packed linear layer, or one layer each for queries,
    keys and values. `scale_first` is True if the modulation of the final layer and of the last
    block's text is stored as (scale, shift), as in our model, and False for (shift, scale).
    """

    patch_embed: str = "pos_embed.proj"
    position_table: str = "pos_embed.pos_embed"
    time: tuple[str, str] = (
        "time_text_embed.timestep_embedder.linear_1",
        "time_text_embed.timestep_embedder.linear_2",
    )
    pooled: tuple[str, str] = (
        "time_text_embed.text_embedder.linear_1",
        "time_text_embed.text_embedder.linear_2",
    )
    block: str = "transformer_blocks."
    adaln: str = "norm1.linear"
    qkv: tuple[str, ...] = ("attn.to_q", "attn.to_k", "attn.to_v")
    norms: str = "attn.norm_"
    proj: str = "attn.to_out.0"
    mlp: tuple[str, str] = ("ff.net.0.proj", "ff.net.2")
    text_adaln: str = "norm1_context.linear"
    text_qkv: tuple[str, ...] = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
    text_norms: str = "attn.norm_added_"
    text_proj: str = "attn.to_add_out"
    text_mlp: tuple[str, str] = ("ff_context.net.0.proj", "ff_context.net.2")
    dual_qkv: tuple[str, ...] = ("attn2.to_q", "attn2.to_k", "attn2.to_v")
    dual_norms: str = "attn2.norm_"
    dual_proj: str = "attn2.to_out.0"
    final: tuple[str, str] = ("norm_out.linear", "proj_out")
    scale_first: bool = True


DIFFUSERS = WeightNames()
# The layout of Stability-AI/sd3-ref.
ORIGINAL = WeightNames(
    patch_embed="x_embedder.proj",
    position_table="pos_embed",
    time=("t_embedder.mlp.0", "t_embedder.mlp.2"),
    pooled=("y_embedder.mlp.0", "y_embedder.mlp.2"),
    block="joint_blocks.",
    adaln="x_block.adaLN_modulation.1",
    qkv=("x_block.attn.qkv",),
    norms="x_block.attn.ln_",
    proj="x_block.attn.proj",
    mlp=("x_block.mlp.fc1", "x_block.mlp.fc2"),
    text_adaln="context_block.adaLN_modulation.1",
    text_qkv=("context_block.attn.qkv",),
    text_norms="context_block.attn.ln_",
    text_proj="context_block.attn.proj",
    text_mlp=("context_block.mlp.fc1", "context_block.mlp.fc2"),
    dual_qkv=("x_block.attn2.qkv",),
    dual_norms="x_block.attn2.ln_",
    dual_proj="x_block.attn2.proj",
    final=("final_layer.adaLN_modulation.1", "final_layer.linear"),
    scale_first=False,
)


def infer_sd3(
    state: Mapping[str, np.ndarray],
    heads: int | None = None,
    published: PublishedConfig = PublishedConfig(),
) -> MMDiTConfig:
    """Infer the config of an SD3, without thinking layers, from the shapes of its weights.

    The shapes determine neither `image_size`, which is set to the size that the position table is
    scaled for, nor `text_tokens`, which keeps its default.

    Args:
      state: a state dict in diffusers' or the original layout. It may be a full checkpoint in the
        original layout, with this model's weights under "model.diffusion_model.".
      heads: number of attention heads; by default that of `published`, else the width divided by
        the features per head, which are read from the norms of queries and keys, or are 64
        without those.
      published: the config.json beside the weights.

    Raises:
      UserError: a weight that determines the size is missing, the shapes aren't those of an SD3,
        or `published` contradicts them.
    """
    weights, names = _open_layout(state)
    width, channels, patch, _ = weights.shape(f"{names.patch_embed}.weight", 4)
    _, text_width = weights.shape("context_embedder.weight", 2)
    _, pooled_width = weights.shape(f"{names.pooled[0]}.weight", 2)
    (outputs,) = weights.shape(f"{names.final[1]}.bias", 1)
    _, positions, _ = weights.shape(names.position_table, 3)
    max_grid = square_side(positions, names.position_table)
    base_grid, grid_offset = _fit_positions(weights.peek(names.position_table), max_grid)
    depth = weights.count(rf"{names.block}(\d+)\.")
    weights.shape(f"{names.block}0.{names.adaln}.bias", 1)  # Raises if there is no block.
    qk_norm = weights.count(rf"{names.block}(\d+)\.{names.norms}") > 0
    head = weights.shape(f"{names.block}0.{names.norms}q.weight", 1)[0] if qk_norm else HEAD_WIDTH
    heads = published.heads(heads)
    if heads is None and width % head:
        raise UserError(
            f"width {width} isn't a multiple of {head}, the features per attention head of SD3: "
            f"give --heads, the number of attention heads"
        )
    config = MMDiTConfig(
        image_size=patch * base_grid,
        channels=channels,
        out_channels=outputs // patch**2,
        patch=patch,
        depth=depth,
        width=width,
        heads=width // head if heads is None else heads,
        text_width=text_width,
        pooled_width=pooled_width,
        qk_norm=qk_norm,
        dual_attention_layers=weights.count(rf"{names.block}(\d+)\.{names.dual_proj}"),
        max_grid=max_grid,
        base_grid=base_grid,
        grid_offset=grid_offset,
        thinking=ThinkingConfig(layers=()),
    )
    _check_published(published, config)
    return config


def _check_published(published: PublishedConfig, config: MMDiTConfig) -> None:
    """Raise a UserError if diffusers' config.json contradicts the weights."""
    published.check(
        num_layers=config.depth,
        attention_head_dim=config.width // config.heads,
        caption_projection_dim=config.width,
        in_channels=config.channels,
        out_channels=config.out_channels,
        patch_size=config.patch,
        joint_attention_dim=config.text_width,
        pooled_projection_dim=config.pooled_width,
        pos_embed_max_size=config.max_grid,
        sample_size=config.image_size,
        dual_attention_layers=list(range(config.dual_attention_layers)),
    )
    if "qk_norm" in published.fields:
        norm = published.fields["qk_norm"]
        if norm not in (None, "rms_norm"):
            published.check_only(qk_norm="rms_norm")
        if (norm is not None) != config.qk_norm:
            # None is a value here, so `check` doesn't apply.
            has = "have" if config.qk_norm else "lack"
            raise UserError(
                f"{published.path}: qk_norm={norm!r}, but the weights {has} norms of queries and "
                f"keys: give the config.json of these weights"
            )


def _open_layout(state: Mapping[str, np.ndarray]) -> tuple[StateDict, WeightNames]:
    weights = StateDict(state, find_prefix(state, ANCHORS))
    original = weights.count(rf"{ORIGINAL.block}(\d+)\.") or ORIGINAL.position_table in weights
    return weights, ORIGINAL if original else DIFFUSERS


def _fit_positions(table: np.ndarray, max_grid: int) -> tuple[int, float]:
    """Return `base_grid` and `grid_offset` of the model that has a position table [1, G², D].

    Feature i of the coordinate p is the sine, or the cosine, of the angle p·ω_i. An angle is known
    but for a multiple of 2π, so that the lowest frequency gives p roughly, and each higher one
    gives it more exactly.
    """
    # In the first row, p varies with the column.
    row = np.nan_to_num(np.asarray(table[0, :max_grid], np.float64))
    quarter = row.shape[1] // 4
    angles = np.arctan2(row[:, :quarter], row[:, quarter : 2 * quarter])
    positions = np.zeros(max_grid)
    for i in reversed(range(quarter)):
        frequency = 1 / 10_000 ** (i / quarter)
        turn = angles[:, i] - positions * frequency
        positions += (turn - 2 * np.pi * np.round(turn / (2 * np.pi))) / frequency
    index = np.arange(max_grid)
    slope = np.polyfit(index, positions, 1)[0] if max_grid > 1 else 1.0
    base_grid = int(np.clip(round(max_grid * float(slope)), 1, LARGEST_GRID))
    offsets = index * (base_grid / max_grid) - positions
    # The table may be of half precision: keep the decimals that it determines.
    error = max(4 * float(offsets.std()) / np.sqrt(max_grid), 1e-6)
    offset = float(np.clip(offsets.mean(), -LARGEST_GRID, LARGEST_GRID))
    decimals = next(n for n in range(7) if abs(round(offset, n) - offset) <= error)
    return base_grid, round(offset, decimals) + 0.0  # not -0.0


def read_sd3(state: Mapping[str, np.ndarray], config: MMDiTConfig) -> dict[str, Any]:
    """Convert a state dict to the "base" parameters of our MMDiT.

    Args:
      state: a state dict in any layout that `infer_sd3` accepts.
      config: the result of `infer_sd3`.

    Raises:
      UserError: a weight is missing, unused or has another shape, or the position table isn't the
        sine-cosine table that our model computes.
    """
    return _read(*_open_layout(state), config)


def write_sd3(base: Any, config: MMDiTConfig) -> dict[str, np.ndarray]:
    """Return the state dict, in diffusers' layout, from which `read_sd3` reads base parameters.

    Args:
      base: the "base" parameters, a tree of float32 arrays.
      config: of the model.
    """
    return write_state_dict(lambda weights: _read(weights, DIFFUSERS, config), base)


def diffusers_config(config: MMDiTConfig) -> dict[str, Any]:
    """Return the config.json of an MMDiT in diffusers' layout."""
    return {
        "_class_name": CLASSES[0],
        "sample_size": config.patch * config.base_grid,
        "patch_size": config.patch,
        "in_channels": config.channels,
        "num_layers": config.depth,
        "attention_head_dim": config.width // config.heads,
        "num_attention_heads": config.heads,
        "joint_attention_dim": config.text_width,
        "caption_projection_dim": config.width,
        "pooled_projection_dim": config.pooled_width,
        "out_channels": config.out_channels,
        "pos_embed_max_size": config.max_grid,
        "dual_attention_layers": list(range(config.dual_attention_layers)),
        "qk_norm": "rms_norm" if config.qk_norm else None,
    }


def _read(weights: StateDict, names: WeightNames, config: MMDiTConfig) -> dict[str, Any]:
    width = config.width
    # diffusers rounds the positions to float32, and computes the table from them in float64.
    grid = np.arange(config.max_grid, dtype=np.float32) / (config.max_grid / config.base_grid)
    grid -= np.float32(config.grid_offset)
    weights.check_position_table(names.position_table, position_embedding(width, grid, grid))
    dual, last, head = config.dual_attention_layers, config.depth - 1, width // config.heads
    mlp_widths = (width, 4 * width, width)

    def qkv(prefix: str, keys: tuple[str, ...]) -> dict[str, np.ndarray]:
        if len(keys) == 1:
            return weights.packed_qkv(prefix + keys[0], width)
        return weights.separate_qkv(*(prefix + key for key in keys), width=width)

    def mlp(
        prefix: str, keys: tuple[str, str], widths: tuple[int, int, int] = mlp_widths
    ) -> dict[str, Any]:
        return weights.mlp(prefix + keys[0], prefix + keys[1], widths)

    def scale_shift(key: str) -> dict[str, np.ndarray]:
        layer = weights.linear(key, width, 2 * width)
        return layer if names.scale_first else swap_halves(layer)

    def block(layer: int) -> dict[str, Any]:
        prefix = f"{names.block}{layer}."
        params = {
            "adaln": weights.linear(
                prefix + names.adaln, width, (9 if layer < dual else 6) * width
            ),
            "qkv": qkv(prefix, names.qkv),
            "proj": weights.linear(prefix + names.proj, width, width),
            "mlp": mlp(prefix, names.mlp),
            "text_qkv": qkv(prefix, names.text_qkv),
        }
        if config.qk_norm:
            params |= weights.norms("norm_", prefix + names.norms, head)
            params |= weights.norms("text_norm_", prefix + names.text_norms, head)
        if layer < dual:
            params["dual_qkv"] = qkv(prefix, names.dual_qkv)
            params["dual_proj"] = weights.linear(prefix + names.dual_proj, width, width)
            if config.qk_norm:
                params |= weights.norms("dual_norm_", prefix + names.dual_norms, head)
        if layer == last:
            return params | {"text_adaln": scale_shift(prefix + names.text_adaln)}
        return params | {
            "text_adaln": weights.linear(prefix + names.text_adaln, width, 6 * width),
            "text_proj": weights.linear(prefix + names.text_proj, width, width),
            "text_mlp": mlp(prefix, names.text_mlp),
        }

    runs = {
        "dual_blocks": range(dual),
        "blocks": range(dual, last),
        "last_block": range(last, last + 1),
    }
    outputs = config.patch**2 * config.out_channels
    base = {
        "patch_embed": weights.patch_embed(names.patch_embed, config.channels, width, config.patch),
        "time_embed": mlp("", names.time, (TIME_FEATURES, width, width)),
        "pooled_embed": mlp("", names.pooled, (config.pooled_width, width, width)),
        "context_embed": weights.linear("context_embedder", config.text_width, width),
        **{name: stack_layers(block, layers) for name, layers in runs.items() if layers},
        "final": {
            "adaln": scale_shift(names.final[0]),
            "out": weights.linear(names.final[1], width, outputs),
        },
    }
    weights.check_all_used()
    return base

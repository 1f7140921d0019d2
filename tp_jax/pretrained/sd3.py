"""Weights of Stable Diffusion 3 and 3.5, in diffusers' names or the original ones.

D width, G side of the position table, in patches.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from tp_jax.messages.errors import UserError
from tp_jax.models import MMDiTConfig
from tp_jax.models.layers import position_embedding
from tp_jax.pretrained.state_dict import StateDict, square_side, stacked
from tp_jax.thinking import ThinkingConfig

TIME_FEATURES = 256
# Features of an attention head, of all that are published.
HEAD = 64
# What full checkpoints of the original layout keep this model under.
PREFIX = "model.diffusion_model."


@dataclasses.dataclass(frozen=True)
class Names:
    """What one layout calls the parts.

    Each of `qkv`, `text_qkv` and `dual_qkv` is one packed layer or three. `swapped` says that
    the final layer and the last block's text modulation are scale and shift, as ours, rather
    than shift and scale.
    """

    patch_embed: str = "pos_embed.proj"
    table: str = "pos_embed.pos_embed"
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
    swapped: bool = True


DIFFUSERS = Names()
# Of Stability-AI/sd3-ref.
ORIGINAL = Names(
    patch_embed="x_embedder.proj",
    table="pos_embed",
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
    swapped=False,
)


def infer_sd3(state: Mapping[str, np.ndarray], heads: int | None = None) -> MMDiTConfig:
    """The config, without thinking, of the SD3 that these weights are of.

    Its `image_size` and `text_tokens`, which the weights don't tell, are those that its position
    table is scaled to and the default.

    Args:
      state: a state dict in diffusers' layout or the original one, or of a full original
        checkpoint, which keeps this model under "model.diffusion_model.".
      heads: of attention; by default as many as the norms of queries and keys tell, or else of
        64 features each.

    Raises:
      UserError: a weight that tells the size is missing, or it is no size of an SD3.
    """
    weights, names = _open(state)
    width, channels, patch, _ = weights.shape(f"{names.patch_embed}.weight", 4)
    _, text_width = weights.shape("context_embedder.weight", 2)
    _, pooled_width = weights.shape(f"{names.pooled[0]}.weight", 2)
    (outputs,) = weights.shape(f"{names.final[1]}.bias", 1)
    _, places, _ = weights.shape(names.table, 3)
    max_grid = square_side(places, names.table)
    base_grid = _base_grid(weights.peek(names.table), max_grid)
    depth = weights.count(rf"{names.block}(\d+)\.")
    weights.shape(f"{names.block}0.{names.adaln}.bias", 1)  # Where there is no block, named here.
    qk_norm = weights.count(rf"{names.block}(\d+)\.{names.norms}") > 0
    head = weights.shape(f"{names.block}0.{names.norms}q.weight", 1)[0] if qk_norm else HEAD
    if heads is None and width % head:
        raise UserError(
            f"the weights are {width} wide, as no published SD3 is, whose heads have {head} "
            f"features: give --heads, its number of attention heads"
        )
    return MMDiTConfig(
        image_size=patch * base_grid,
        channels=channels,
        out_channels=outputs // patch**2,
        patch=patch,
        depth=depth,
        width=width,
        heads=heads or width // head,
        text_width=text_width,
        pooled_width=pooled_width,
        qk_norm=qk_norm,
        dual_attention_layers=weights.count(rf"{names.block}(\d+)\.{names.dual_proj}"),
        max_grid=max_grid,
        base_grid=base_grid,
        thinking=ThinkingConfig(layers=()),
    )


def _open(state: Mapping[str, np.ndarray]) -> tuple[StateDict, Names]:
    prefix = PREFIX if any(key.startswith(PREFIX) for key in state) else ""
    weights = StateDict(state, prefix)
    original = weights.count(rf"{ORIGINAL.block}(\d+)\.") or ORIGINAL.table in weights
    return weights, ORIGINAL if original else DIFFUSERS


def _base_grid(table: np.ndarray, max_grid: int) -> int:
    """The side that the positions of a table [1, G², D] are scaled to."""
    # The first feature of the second column is the sine of the distance of two places.
    distance = np.arcsin(np.clip(np.nan_to_num(np.float64(table[0, 1, 0])), 0, 1))
    return max(1, round(float(max_grid * distance)))


def read_sd3(state: Mapping[str, np.ndarray], config: MMDiTConfig) -> dict[str, Any]:
    """Our "base" parameters from a state dict, in any layout that `infer_sd3` takes.

    Raises:
      UserError: a weight is missing, left over or has another shape, or its position table
        isn't ours.
    """
    (weights, names), width = _open(state), config.width
    side = np.arange(config.max_grid) * (config.base_grid / config.max_grid)
    weights.check_position_table(names.table, position_embedding(width, side, side))
    dual, last, head = config.dual_attention_layers, config.depth - 1, width // config.heads
    mlp_widths = (width, 4 * width, width)

    def qkv(at: str, keys: tuple[str, ...]) -> dict[str, np.ndarray]:
        if len(keys) == 1:
            return weights.packed_qkv(at + keys[0], width)
        return weights.separate_qkv(*(at + key for key in keys), width=width)

    def mlp(
        at: str, keys: tuple[str, str], widths: tuple[int, int, int] = mlp_widths
    ) -> dict[str, Any]:
        return weights.mlp(at + keys[0], at + keys[1], widths)

    def scale_shift(key: str) -> dict[str, np.ndarray]:
        layer = weights.linear(key, width, 2 * width)
        if names.swapped:
            return layer
        return {name: np.roll(array, width, axis=-1) for name, array in layer.items()}

    def block(layer: int) -> dict[str, Any]:
        at = f"{names.block}{layer}."
        params = {
            "adaln": weights.linear(at + names.adaln, width, (9 if layer < dual else 6) * width),
            "qkv": qkv(at, names.qkv),
            "proj": weights.linear(at + names.proj, width, width),
            "mlp": mlp(at, names.mlp),
            "text_qkv": qkv(at, names.text_qkv),
        }
        if config.qk_norm:
            params |= weights.norms("norm_", at + names.norms, head)
            params |= weights.norms("text_norm_", at + names.text_norms, head)
        if layer < dual:
            params["dual_qkv"] = qkv(at, names.dual_qkv)
            params["dual_proj"] = weights.linear(at + names.dual_proj, width, width)
            if config.qk_norm:
                params |= weights.norms("dual_norm_", at + names.dual_norms, head)
        if layer == last:
            return params | {"text_adaln": scale_shift(at + names.text_adaln)}
        return params | {
            "text_adaln": weights.linear(at + names.text_adaln, width, 6 * width),
            "text_proj": weights.linear(at + names.text_proj, width, width),
            "text_mlp": mlp(at, names.text_mlp),
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
        **{name: stacked(block, layers) for name, layers in runs.items() if layers},
        "final": {
            "adaln": scale_shift(names.final[0]),
            "out": weights.linear(names.final[1], width, outputs),
        },
    }
    weights.check_used_up()
    return base

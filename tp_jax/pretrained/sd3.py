"""Weights of diffusers' SD3Transformer2DModel. D width."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from tp_jax.models import MMDiTConfig
from tp_jax.models.layers import position_embedding
from tp_jax.pretrained.state_dict import StateDict, stacked

TIME_FEATURES = 256


def read_sd3(state: Mapping[str, np.ndarray], config: MMDiTConfig) -> dict[str, Any]:
    """Our "base" parameters from a state dict of diffusers' SD3Transformer2DModel.

    Raises:
      UserError: a weight is missing, left over or has another shape, or its position table
        isn't ours.
    """
    weights, width = StateDict(state), config.width
    side = np.arange(config.max_grid) * (config.base_grid / config.max_grid)
    table = position_embedding(width, side, side)
    weights.check_position_table("pos_embed.pos_embed", table)
    dual, last, head = config.dual_attention_layers, config.depth - 1, width // config.heads
    mlp_widths = (width, 4 * width, width)

    def qkv(at, *names):
        return weights.separate_qkv(*(at + name for name in names), width=width)

    def block(layer):
        at = f"transformer_blocks.{layer}."
        attn, attn2 = at + "attn.", at + "attn2."
        chunks = 9 if layer < dual else 6
        text_chunks = 6 if layer < last else 2
        params = {
            "adaln": weights.linear(at + "norm1.linear", width, chunks * width),
            "qkv": qkv(attn, "to_q", "to_k", "to_v"),
            "proj": weights.linear(attn + "to_out.0", width, width),
            "mlp": weights.mlp(at + "ff.net.0.proj", at + "ff.net.2", mlp_widths),
            "text_adaln": weights.linear(at + "norm1_context.linear", width, text_chunks * width),
            "text_qkv": qkv(attn, "add_q_proj", "add_k_proj", "add_v_proj"),
        }
        if config.qk_norm:
            params |= weights.norms("norm_", attn + "norm_", head)
            params |= weights.norms("text_norm_", attn + "norm_added_", head)
        if layer < dual:
            params["dual_qkv"] = qkv(attn2, "to_q", "to_k", "to_v")
            params["dual_proj"] = weights.linear(attn2 + "to_out.0", width, width)
            if config.qk_norm:
                params |= weights.norms("dual_norm_", attn2 + "norm_", head)
        if layer < last:
            text_mlp = (at + "ff_context.net.0.proj", at + "ff_context.net.2")
            params["text_proj"] = weights.linear(attn + "to_add_out", width, width)
            params["text_mlp"] = weights.mlp(*text_mlp, mlp_widths)
        return params

    runs = {
        "dual_blocks": range(dual),
        "blocks": range(dual, last),
        "last_block": range(last, last + 1),
    }
    time, pooled = (f"time_text_embed.{name}_embedder.linear_" for name in ("timestep", "text"))
    outputs = config.patch**2 * config.out_channels
    base = {
        "patch_embed": weights.patch_embed("pos_embed.proj", config.channels, width, config.patch),
        "time_embed": weights.mlp(time + "1", time + "2", (TIME_FEATURES, width, width)),
        "pooled_embed": weights.mlp(
            pooled + "1", pooled + "2", (config.pooled_width, width, width)
        ),
        "context_embed": weights.linear("context_embedder", config.text_width, width),
        **{name: stacked(block, layers) for name, layers in runs.items() if layers},
        "final": {
            "adaln": weights.linear("norm_out.linear", width, 2 * width),
            "out": weights.linear("proj_out", width, outputs),
        },
    }
    weights.check_used_up()
    return base

"""Torch state dicts of DiT and of diffusers' SD3 transformer, as our parameter trees.

D width, p patch size, C channels. Torch holds linear kernels as [out, in], we as [in, out].
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from tp_jax.errors import UserError
from tp_jax.models import DiTConfig, MMDiTConfig
from tp_jax.models.layers import position_embedding

# Published files hold their position tables in half precision: values up to 1, so 2^-11 apart.
TABLE_TOLERANCE = 1e-3


class StateDict:
    """A state dict that hands out every weight once, in our layout."""

    def __init__(self, state: Mapping[str, np.ndarray]):
        self._left = dict(state)

    def take(self, key: str) -> np.ndarray:
        """The weight, float32 and as torch holds it."""
        if key not in self._left:
            raise UserError(f"the torch weights lack {key}, or it was asked for twice")
        return np.asarray(self._left.pop(key), np.float32)

    def linear(self, key: str) -> dict[str, np.ndarray]:
        """A linear layer."""
        return {"kernel": self.take(f"{key}.weight").T, "bias": self.take(f"{key}.bias")}

    def patch_embed(self, key: str) -> dict[str, np.ndarray]:
        """A convolution [D, C, p, p] with stride p, as the linear layer of patches (p, p, C)."""
        kernel = self.take(f"{key}.weight")
        kernel = kernel.transpose(2, 3, 1, 0).reshape(-1, kernel.shape[0])
        return {"kernel": kernel, "bias": self.take(f"{key}.bias")}

    def packed_qkv(self, key: str) -> dict[str, np.ndarray]:
        """Q, K and V in one linear layer [3·D, D]."""
        packed = self.linear(key)
        width = packed["kernel"].shape[0]
        return {
            "kernel": packed["kernel"].reshape(width, 3, width),
            "bias": packed["bias"].reshape(3, width),
        }

    def separate_qkv(self, *keys: str) -> dict[str, np.ndarray]:
        """Q, K and V in a linear layer each."""
        q, k, v = (self.linear(key) for key in keys)
        return jax.tree.map(lambda *parts: np.stack(parts, axis=-2), q, k, v)

    def norms(self, ours: str, torchs: str) -> dict[str, dict[str, np.ndarray]]:
        """RMS norms of queries and keys; the names end in "q" and "k" on both sides."""
        return {ours + end: {"scale": self.take(f"{torchs}{end}.weight")} for end in "qk"}

    def mlp(self, first: str, second: str) -> dict[str, dict[str, np.ndarray]]:
        """Two linear layers."""
        return {"in": self.linear(first), "out": self.linear(second)}

    def check_position_table(self, key: str, expected: np.ndarray) -> None:
        """Takes a position table, which we compute; raises a UserError if it is another one."""
        table = self.take(key)[0]
        if table.shape != expected.shape:
            raise UserError(f"{key} is {list(table.shape)}, but the config's {expected.shape}")
        error = np.abs(table - expected).max()
        if error > TABLE_TOLERANCE:
            raise UserError(f"{key} is not the config's position table: it is off by {error:.2g}")

    def check_used_up(self) -> None:
        """Raises a UserError that names what is left."""
        if self._left:
            raise UserError(f"the config has no place for these weights: {', '.join(self._left)}")


def stacked(block: Callable[[int], Any], layers: range) -> Any:
    """The trees of these layers, with a leading axis of layers."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *map(block, layers))


def read_dit(state: Mapping[str, np.ndarray], config: DiTConfig) -> dict[str, Any]:
    """Our "base" parameters from a state dict of facebookresearch/DiT.

    Raises:
      UserError: a weight is missing or left over, or its position table isn't ours.
    """
    weights = StateDict(state)
    side = np.arange(config.image_size // config.patch)
    weights.check_position_table("pos_embed", position_embedding(config.width, side, side))

    def block(layer):
        at = f"blocks.{layer}."
        return {
            "adaln": weights.linear(at + "adaLN_modulation.1"),
            "qkv": weights.packed_qkv(at + "attn.qkv"),
            "proj": weights.linear(at + "attn.proj"),
            "mlp": weights.mlp(at + "mlp.fc1", at + "mlp.fc2"),
        }

    base = {
        "patch_embed": weights.patch_embed("x_embedder.proj"),
        "time_embed": weights.mlp("t_embedder.mlp.0", "t_embedder.mlp.2"),
        "label_embed": {"embedding": weights.take("y_embedder.embedding_table.weight")},
        "blocks": stacked(block, range(config.depth)),
        "final": {
            "adaln": weights.linear("final_layer.adaLN_modulation.1"),
            "out": weights.linear("final_layer.linear"),
        },
    }
    weights.check_used_up()
    return base


def read_sd3(state: Mapping[str, np.ndarray], config: MMDiTConfig) -> dict[str, Any]:
    """Our "base" parameters from a state dict of diffusers' SD3Transformer2DModel.

    Raises:
      UserError: a weight is missing or left over, or its position table isn't ours.
    """
    weights = StateDict(state)
    side = np.arange(config.max_grid) * (config.base_grid / config.max_grid)
    table = position_embedding(config.width, side, side)
    weights.check_position_table("pos_embed.pos_embed", table)
    dual, last = config.dual_attention_layers, config.depth - 1

    def block(layer):
        at = f"transformer_blocks.{layer}."
        attn, attn2 = at + "attn.", at + "attn2."
        params = {
            "adaln": weights.linear(at + "norm1.linear"),
            "qkv": weights.separate_qkv(attn + "to_q", attn + "to_k", attn + "to_v"),
            "proj": weights.linear(attn + "to_out.0"),
            "mlp": weights.mlp(at + "ff.net.0.proj", at + "ff.net.2"),
            "text_adaln": weights.linear(at + "norm1_context.linear"),
            "text_qkv": weights.separate_qkv(
                attn + "add_q_proj", attn + "add_k_proj", attn + "add_v_proj"
            ),
        }
        if config.qk_norm:
            params |= weights.norms("norm_", attn + "norm_")
            params |= weights.norms("text_norm_", attn + "norm_added_")
        if layer < dual:
            params["dual_qkv"] = weights.separate_qkv(
                attn2 + "to_q", attn2 + "to_k", attn2 + "to_v"
            )
            params["dual_proj"] = weights.linear(attn2 + "to_out.0")
            if config.qk_norm:
                params |= weights.norms("dual_norm_", attn2 + "norm_")
        if layer < last:
            params["text_proj"] = weights.linear(attn + "to_add_out")
            params["text_mlp"] = weights.mlp(at + "ff_context.net.0.proj", at + "ff_context.net.2")
        return params

    runs = {
        "dual_blocks": range(dual),
        "blocks": range(dual, last),
        "last_block": range(last, last + 1),
    }
    time, pooled = (f"time_text_embed.{name}_embedder.linear_" for name in ("timestep", "text"))
    base = {
        "patch_embed": weights.patch_embed("pos_embed.proj"),
        "time_embed": weights.mlp(time + "1", time + "2"),
        "pooled_embed": weights.mlp(pooled + "1", pooled + "2"),
        "context_embed": weights.linear("context_embedder"),
        **{name: stacked(block, layers) for name, layers in runs.items() if layers},
        "final": {"adaln": weights.linear("norm_out.linear"), "out": weights.linear("proj_out")},
    }
    weights.check_used_up()
    return base

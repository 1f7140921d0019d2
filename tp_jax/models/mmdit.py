"""MMDiT (Esser et al., arXiv 2403.03206), the joint-attention transformer of SD3, with thinking.

B samples, N vision tokens, L text tokens, D width. The results equal those of diffusers'
SD3Transformer2DModel. `qk_norm` and `dual_attention_layers` are for SD3.5.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tp_jax.messages.errors import UserError
from tp_jax.models import stack
from tp_jax.models.attention import attention, split_heads
from tp_jax.models.final_layer import FinalLayer
from tp_jax.models.layers import (
    QKV,
    AdaLN,
    EmbedMlp,
    Mlp,
    RMSNorm,
    dense,
    layer_norm,
    modulate,
    patchify,
    position_embedding,
    timestep_embedding,
)
from tp_jax.models.mmdit_config import MMDiTConfig
from tp_jax.thinking.layer import (
    AttentionInputs,
    AttentionReplacement,
    Conditioning,
    RoutingStats,
    Thinking,
    ThinkingOptions,
)


class MMDiTBlock(nn.Module):
    """Joint attention of vision and text, then an MLP for each.

    Attributes:
      config: of the model.
      dual: add a second attention over the vision tokens only.
      last: the text tokens enter attention, but are not updated, because no block follows.
    """

    config: MMDiTConfig
    dual: bool = False
    last: bool = False

    def _qk_norm(self, prefix: str) -> Callable[[jax.Array], jax.Array]:
        """Return a function on [B, N, 3, H, D/H] that normalises queries and keys."""
        if not self.config.qk_norm:
            return lambda qkv: qkv
        head_dim = self.config.width // self.config.heads
        norm_q = RMSNorm(head_dim, name=f"{prefix}norm_q")()
        norm_k = RMSNorm(head_dim, name=f"{prefix}norm_k")()
        return lambda qkv: jnp.stack(
            [norm_q(qkv[:, :, 0]), norm_k(qkv[:, :, 1]), qkv[:, :, 2]], axis=2
        )

    @nn.compact
    def __call__(
        self,
        carry: tuple[jax.Array, jax.Array],
        y: Conditioning,
        think: AttentionReplacement | None = None,
    ) -> tuple[tuple[jax.Array, jax.Array], RoutingStats | None]:
        """Map (vision [B, N, D], text [B, L, D]) to the same shapes.

        Also return the statistics of the thinking layer.
        """
        (x, c), cfg = carry, self.config
        dtype, vision_tokens = x.dtype, x.shape[1]
        embedding = (y.time + y.condition).astype(dtype)
        modulation = AdaLN(cfg.width, 9 if self.dual else 6, dtype, name="adaln")(embedding)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = modulation[:6]
        text_adaln = AdaLN(cfg.width, 2 if self.last else 6, dtype, name="text_adaln")(embedding)
        # In the last block, the published weights store the scale before the shift.
        text_shift, text_scale = text_adaln[::-1] if self.last else text_adaln[:2]

        base = QKV(cfg.width, dtype, name="qkv")()
        vision_norm, text_norm = self._qk_norm(""), self._qk_norm("text_")
        text_qkv = QKV(cfg.width, dtype, name="text_qkv")()(
            modulate(layer_norm(c), text_shift, text_scale)
        )
        text_qkv = text_norm(split_heads(text_qkv, cfg.heads))

        def attend(qkv: jax.Array) -> tuple[jax.Array, jax.Array]:
            qkv = vision_norm(split_heads(qkv, cfg.heads))
            joint = jnp.concatenate([qkv, text_qkv], axis=1)
            out = attention(joint, cfg.heads, cfg.attention)
            return out[:, :vision_tokens], out[:, vision_tokens:]

        normed, stats = layer_norm(x), None
        h = modulate(normed, shift, scale)
        if think is None:
            attended, text_attended = attend(base(h))
        else:
            attended, text_attended, stats = think(
                AttentionInputs(h, x, scale, shift, y, base, attend)
            )

        x = x + gate[:, None] * dense(cfg.width, "proj", dtype)(attended)
        if self.dual:
            dual_shift, dual_scale, dual_gate = modulation[6:]
            qkv = QKV(cfg.width, dtype, name="dual_qkv")()(modulate(normed, dual_shift, dual_scale))
            qkv = self._qk_norm("dual_")(split_heads(qkv, cfg.heads))
            attended = attention(qkv, cfg.heads, cfg.attention)
            x = x + dual_gate[:, None] * dense(cfg.width, "dual_proj", dtype)(attended)
        mlp = Mlp(cfg.width, 4 * cfg.width, dtype, name="mlp")
        x = x + mlp_gate[:, None] * mlp(modulate(layer_norm(x), mlp_shift, mlp_scale))
        if self.last:
            return (x, c), stats

        text_gate, text_mlp_shift, text_mlp_scale, text_mlp_gate = text_adaln[2:]
        c = c + text_gate[:, None] * dense(cfg.width, "text_proj", dtype)(text_attended)
        text_mlp = Mlp(cfg.width, 4 * cfg.width, dtype, name="text_mlp")
        c = c + text_mlp_gate[:, None] * text_mlp(
            modulate(layer_norm(c), text_mlp_shift, text_mlp_scale)
        )
        return (x, c), stats


class MMDiTBase(nn.Module):
    """The base model. Its parameters do not depend on which blocks think."""

    config: MMDiTConfig

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        timestep: jax.Array,
        text: jax.Array,
        pooled: jax.Array,
        thinking: Mapping[int, AttentionReplacement],
    ) -> tuple[jax.Array, dict[int, RoutingStats]]:
        """Predict the output of `MMDiT`, with its thinking layers given as an argument."""
        cfg, dtype = self.config, jnp.dtype(self.config.dtype)
        height, width = x.shape[1:3]
        x = dense(cfg.width, "patch_embed", dtype, path="patch_embed")(
            patchify(x.astype(dtype), cfg.patch)
        )
        rows, columns = (grid_positions(cfg, side // cfg.patch) for side in (height, width))
        x = x + position_embedding(cfg.width, rows, columns).astype(dtype)
        time = EmbedMlp(cfg.width, dtype, name="time_embed")(timestep_embedding(timestep))
        pooled = EmbedMlp(cfg.width, dtype, name="pooled_embed")(pooled)
        c = dense(cfg.width, "context_embed", dtype, path="context_embed")(text.astype(dtype))

        carry, routing_stats = stack.run_stacks(
            self._stacks(dtype), (x, c), Conditioning(time, pooled), thinking,
            remat=cfg.remat, scan=cfg.scan_blocks,
        )  # fmt: skip
        final = FinalLayer(cfg, "scale_shift", name="final")
        return final(carry[0], Conditioning(time, pooled), height, width), routing_stats

    def _stacks(self, dtype: jnp.dtype) -> list[stack.Stack]:
        cfg = self.config
        # Initialisation needs shapes and dtypes only.
        tokens: Any = jax.ShapeDtypeStruct((1, 1, cfg.width), dtype)
        vector: Any = jax.ShapeDtypeStruct((1, cfg.width), dtype)
        example = ((tokens, tokens), Conditioning(vector, vector))
        # (name, dual, last, number of layers)
        kinds = [
            ("dual_blocks", True, False, cfg.dual_attention_layers),
            ("blocks", False, False, cfg.depth - cfg.dual_attention_layers - 1),
            ("last_block", False, True, 1),
        ]
        return [
            stack.declare_stack(
                self, name, MMDiTBlock(cfg, dual, last, parent=None), layers, *example
            )
            for name, dual, last, layers in kinds
            if layers
        ]


def grid_positions(config: MMDiTConfig, patches: int) -> np.ndarray:
    """Return the scaled coordinates of the central `patches` entries of the position table.

    Raises:
      UserError: the table is smaller.
    """
    if patches > config.max_grid:
        raise UserError(
            f"an image with {patches} patches per side exceeds the position table: "
            f"config.model.max_grid={config.max_grid}"
        )
    index = (config.max_grid - patches) // 2 + np.arange(patches)
    return index * (config.base_grid / config.max_grid) - config.grid_offset


class MMDiT(nn.Module):
    """An MMDiT, with parameters `base` and, if any block thinks, `thinking`."""

    config: MMDiTConfig

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        timestep: jax.Array,
        condition: dict[str, jax.Array],
        options: ThinkingOptions = ThinkingOptions(),
    ) -> tuple[jax.Array, dict[int, RoutingStats]]:
        """Predict the noise, velocity or data, as the objective requires.

        Args:
          x: [B, H, W, C] noisy images or latents, any float dtype.
          timestep: [B] in 0 … 1000.
          condition: the encoded prompts, "text" [B, L, text_width] and "pooled"
            [B, pooled_width], and the encoded empty prompt, "null_text" and "null_pooled" of the
            same shapes.
          options: for the thinking layers.

        Returns:
          [B, H, W, out_channels] float32, and {block index: statistics of its thinking layer}.
        """
        tokens = (x.shape[1] // self.config.patch) * (x.shape[2] // self.config.patch)
        thinking = Thinking(self.config.thinking, self.config.width, name="thinking")
        layers = thinking(options, tokens)
        base = MMDiTBase(self.config, name="base")
        return base(x, timestep, condition["text"], condition["pooled"], layers)

    def null_condition(self, condition: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Return the condition with the empty prompt, for guidance and dropout."""
        text, pooled = condition["null_text"], condition["null_pooled"]
        return condition | {"text": text, "pooled": pooled}

    def example_condition(self, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Return the shapes and dtypes of a condition."""
        cfg = self.config
        text = jax.ShapeDtypeStruct((batch, cfg.text_tokens, cfg.text_width), jnp.float32)
        pooled = jax.ShapeDtypeStruct((batch, cfg.pooled_width), jnp.float32)
        return {"text": text, "pooled": pooled, "null_text": text, "null_pooled": pooled}

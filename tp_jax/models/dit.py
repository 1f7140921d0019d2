"""DiT (Peebles & Xie, arXiv 2212.09748), with thinking layers in any of its blocks.

B samples, N tokens, D width, C channels. The results equal those of facebookresearch/DiT.
"""

from collections.abc import Mapping
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tp_jax.models import stack
from tp_jax.models.attention import attention, split_heads
from tp_jax.models.dit_config import DiTConfig
from tp_jax.models.final_layer import FinalLayer
from tp_jax.models.layers import (
    QKV,
    AdaLN,
    EmbedMlp,
    Mlp,
    dense,
    layer_norm,
    modulate,
    patchify,
    position_embedding,
    timestep_embedding,
)
from tp_jax.parallel.sharding import gather
from tp_jax.thinking.layer import (
    AttentionInputs,
    AttentionReplacement,
    Conditioning,
    RoutingStats,
    Thinking,
    ThinkingOptions,
)


class DiTBlock(nn.Module):
    """adaLN-Zero block: attention, or a thinking layer instead of it, then an MLP."""

    config: DiTConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, y: Conditioning, think: AttentionReplacement | None = None
    ) -> tuple[jax.Array, RoutingStats | None]:
        """Map x [B, N, D] to x [B, N, D], and return the statistics of the thinking layer."""
        cfg, dtype = self.config, x.dtype
        chunks = AdaLN(cfg.width, 6, dtype, name="adaln")((y.time + y.condition).astype(dtype))
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = chunks
        base = QKV(cfg.width, dtype, name="qkv")()

        def attend(qkv: jax.Array) -> tuple[jax.Array, None]:
            return attention(split_heads(qkv, cfg.heads), cfg.heads, cfg.attention), None

        h, stats = modulate(layer_norm(x), shift, scale), None
        if think is None:
            attended, _ = attend(base(h))
        else:
            attended, _, stats = think(AttentionInputs(h, x, scale, shift, y, base, attend))
        x = x + gate[:, None] * dense(cfg.width, "proj", dtype)(attended)
        mlp = Mlp(cfg.width, cfg.mlp_ratio * cfg.width, dtype, name="mlp")
        x = x + mlp_gate[:, None] * mlp(modulate(layer_norm(x), mlp_shift, mlp_scale))
        return x, stats


class DiTBase(nn.Module):
    """The base model. Its parameters do not depend on which blocks think."""

    config: DiTConfig

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        timestep: jax.Array,
        label: jax.Array,
        thinking: Mapping[int, AttentionReplacement],
        frame: jax.Array | None = None,
    ) -> tuple[jax.Array, dict[int, RoutingStats]]:
        """Predict the output of `DiT`, with its thinking layers given as an argument."""
        cfg, dtype = self.config, jnp.dtype(self.config.dtype)
        height, width = x.shape[1:3]
        grid = np.arange(height // cfg.patch), np.arange(width // cfg.patch)
        positions = position_embedding(cfg.width, *grid).astype(dtype)

        def embed(image: jax.Array, name: str) -> jax.Array:
            tokens = patchify(image.astype(dtype), cfg.patch)
            return dense(cfg.width, name, dtype, path=name)(tokens) + positions

        # A frame is given whenever `cfg.frame` is set.
        given = cast(jax.Array, frame)
        if cfg.frame == "channels":
            x = jnp.concatenate([x, given], axis=-1)
        x = embed(x, "patch_embed")
        if cfg.frame == "tokens":
            x = jnp.concatenate([embed(given, "frame_embed"), x], axis=1)
        share = cfg.time_input == "data_share"
        sinusoids = timestep_embedding(1 - timestep / 1000 if share else timestep)
        time = EmbedMlp(cfg.width, dtype, name="time_embed")(sinusoids)
        normal = nn.initializers.normal(0.02)
        # The last row of the table is the embedding of "no class", unless `null_class` is False.
        table = nn.Embed(cfg.label_rows, cfg.width, embedding_init=normal, name="label_embed")
        # Gathered on every device, because a device can have samples of any class.
        embedding = gather({"embedding": table.embedding.astype(dtype)}, "label_embed")
        y = Conditioning(time, jnp.take(embedding["embedding"], label, axis=0))

        # Initialisation needs shapes and dtypes only.
        tokens: Any = jax.ShapeDtypeStruct((1, 1, cfg.width), dtype)
        vector: Any = jax.ShapeDtypeStruct((1, cfg.width), dtype)
        example = (tokens, Conditioning(vector, vector))
        blocks = stack.declare_stack(
            self, "blocks", DiTBlock(cfg, parent=None), cfg.depth, *example
        )
        x, routing_stats = stack.run_stacks(
            [blocks], x, y, thinking, remat=cfg.remat, scan=cfg.scan_blocks
        )
        x = x[:, -len(positions) :]
        out = FinalLayer(cfg, "shift_scale", name="final")(x, y, height, width)
        return out + given if cfg.frame else out, routing_stats


class DiT(nn.Module):
    """A DiT, with parameters `base` and, if any block thinks, `thinking`."""

    config: DiTConfig

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
          condition: {"label": [B] int32}, where the label `num_classes` means "no class". With
            `config.frame` also "frame" [B, H, W, C].
          options: for the thinking layers.

        Returns:
          [B, H, W, out_channels] float32, and {block index: statistics of its thinking layer}.
        """
        tokens = (x.shape[1] // self.config.patch) * (x.shape[2] // self.config.patch)
        tokens *= 2 if self.config.frame == "tokens" else 1
        thinking = Thinking(self.config.thinking, self.config.width, name="thinking")
        layers = thinking(options, tokens)
        base = DiTBase(self.config, name="base")
        return base(x, timestep, condition["label"], layers, condition.get("frame"))

    def null_condition(self, condition: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Return the condition with "no class" labels, for guidance and dropout.

        The config refuses both for a model without null class.
        """
        # The frame is kept, because the prediction always continues from it.
        return condition | {"label": jnp.full_like(condition["label"], self.config.num_classes)}

    def example_condition(self, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Return the shapes and dtypes of a condition."""
        cfg = self.config
        label = {"label": jax.ShapeDtypeStruct((batch,), jnp.int32)}
        shape = (batch, cfg.image_size, cfg.image_size, cfg.channels)
        return label | {"frame": jax.ShapeDtypeStruct(shape, jnp.float32)} if cfg.frame else label

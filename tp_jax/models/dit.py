"""DiT (Peebles & Xie, arXiv 2212.09748), with thinking in any set of blocks.

B samples, N tokens, D width, C channels. Layout and numbers as facebookresearch/DiT.
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
from tp_jax.models.transformer import FinalLayer
from tp_jax.parallel.sharding import gather
from tp_jax.thinking.layer import (
    Conditioning,
    InPlaceOfAttention,
    Thinking,
    ThinkingOptions,
    Thought,
)


class DiTBlock(nn.Module):
    """adaLN-Zero block: attention (or thinking in its place), then an MLP."""

    config: DiTConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, y: Conditioning, think: InPlaceOfAttention | None = None
    ) -> tuple[jax.Array, Thought | None]:
        """x [B, N, D] -> x [B, N, D] and what was thought."""
        cfg, dtype = self.config, x.dtype
        chunks = AdaLN(cfg.width, 6, dtype, name="adaln")((y.time + y.condition).astype(dtype))
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = chunks
        base = QKV(cfg.width, dtype, name="qkv")()

        def attend(qkv: jax.Array) -> tuple[jax.Array, None]:
            return attention(split_heads(qkv, cfg.heads), cfg.heads, cfg.attention), None

        h, thought = modulate(layer_norm(x), shift, scale), None
        if think is None:
            attended, _ = attend(base(h))
        else:
            attended, _, thought = think(h, scale, shift, y, base, attend)
        x = x + gate[:, None] * dense(cfg.width, "proj", dtype)(attended)
        mlp = Mlp(cfg.width, cfg.mlp_ratio * cfg.width, dtype, name="mlp")
        x = x + mlp_gate[:, None] * mlp(modulate(layer_norm(x), mlp_shift, mlp_scale))
        return x, thought


class DiTBase(nn.Module):
    """The base model; its parameters are the same whichever blocks think."""

    config: DiTConfig

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        timestep: jax.Array,
        label: jax.Array,
        thinking: Mapping[int, InPlaceOfAttention],
        frame: jax.Array | None = None,
    ) -> tuple[jax.Array, dict[int, Thought]]:
        """As `DiT`, with the thinking layers handed in."""
        cfg, dtype = self.config, jnp.dtype(self.config.dtype)
        height, width = x.shape[1:3]
        grid = np.arange(height // cfg.patch), np.arange(width // cfg.patch)
        positions = position_embedding(cfg.width, *grid).astype(dtype)

        def embed(image: jax.Array, name: str) -> jax.Array:
            tokens = patchify(image.astype(dtype), cfg.patch)
            return dense(cfg.width, name, dtype, path=name)(tokens) + positions

        # Wherever `cfg.frame` asks for one it is there.
        given = cast(jax.Array, frame)
        if cfg.frame == "channels":
            x = jnp.concatenate([x, given], axis=-1)
        x = embed(x, "patch_embed")
        if cfg.frame == "tokens":
            x = jnp.concatenate([embed(given, "frame_embed"), x], axis=1)
        time = EmbedMlp(cfg.width, dtype, name="time_embed")(timestep_embedding(timestep))
        normal = nn.initializers.normal(0.02)
        # The row after the last class stands for no class.
        table = nn.Embed(cfg.num_classes + 1, cfg.width, embedding_init=normal, name="label_embed")
        # Whole on every device, as tokens of any class may be there.
        embedding = gather({"embedding": table.embedding.astype(dtype)}, "label_embed")
        y = Conditioning(time, jnp.take(embedding["embedding"], label, axis=0))

        # In place of arrays.
        tokens: Any = jax.ShapeDtypeStruct((1, 1, cfg.width), dtype)
        vector: Any = jax.ShapeDtypeStruct((1, cfg.width), dtype)
        example = (tokens, Conditioning(vector, vector))
        blocks = stack.declare_stack(
            self, "blocks", DiTBlock(cfg, parent=None), cfg.depth, *example
        )
        x, thoughts = stack.run_stacks(
            [blocks], x, y, thinking, remat=cfg.remat, scan=cfg.scan_blocks
        )
        x = x[:, -len(positions) :]
        out = FinalLayer(cfg, "shift_scale", name="final")(x, y, height, width)
        return out + given if cfg.frame else out, thoughts


class DiT(nn.Module):
    """A DiT: parameters `base` and, where it thinks, `thinking`."""

    config: DiTConfig

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        timestep: jax.Array,
        condition: dict[str, jax.Array],
        options: ThinkingOptions = ThinkingOptions(),
    ) -> tuple[jax.Array, dict[int, Thought]]:
        """Predicts what the objective asks for.

        Args:
          x: [B, H, W, C] noisy images or latents, any float dtype.
          timestep: [B] in 0 … 1000.
          condition: {"label": [B] int32}; `num_classes` means no class. With `config.frame`,
            "frame" [B, H, W, C] too.
          options: noise, latent steps and trace of the thinking layers.

        Returns:
          [B, H, W, out_channels] float32, and {block index: Thought}.
        """
        tokens = (x.shape[1] // self.config.patch) * (x.shape[2] // self.config.patch)
        tokens *= 2 if self.config.frame == "tokens" else 1
        thinking = Thinking(self.config.thinking, self.config.width, name="thinking")
        layers = thinking(options, tokens)
        base = DiTBase(self.config, name="base")
        return base(x, timestep, condition["label"], layers, condition.get("frame"))

    def null_condition(self, condition: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """The same batch without its classes, for guidance and dropout."""
        # A frame stays: what is drawn goes on from it, with or without a class.
        return condition | {"label": jnp.full_like(condition["label"], self.config.num_classes)}

    def example_condition(self, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of a condition."""
        cfg = self.config
        label = {"label": jax.ShapeDtypeStruct((batch,), jnp.int32)}
        shape = (batch, cfg.image_size, cfg.image_size, cfg.channels)
        return label | {"frame": jax.ShapeDtypeStruct(shape, jnp.float32)} if cfg.frame else label

"""A model without attention: it predicts each patch independently from its timestep and label."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from tp_jax.models.config import TransformerConfig
from tp_jax.models.final_layer import FinalLayer
from tp_jax.models.layers import EmbedMlp, dense, patchify, timestep_embedding
from tp_jax.thinking.layer import Conditioning, ThinkingOptions


@dataclasses.dataclass(frozen=True)
class PatchConfig(TransformerConfig):
    kinds: int = 2

    @property
    def condition_kind(self):
        return "label"

    @property
    def classes(self):
        return self.kinds

    def block_flops(self, layer):
        return 0.0


class Base(nn.Module):
    config: PatchConfig

    @nn.compact
    def __call__(self, x, timestep, label):
        cfg, dtype = self.config, jnp.dtype(self.config.dtype)
        height, width = x.shape[1:3]
        tokens = patchify(x.astype(dtype), cfg.patch)
        tokens = dense(cfg.width, "patch_embed", dtype, path="patch_embed")(tokens)
        time = EmbedMlp(cfg.width, dtype, name="time_embed")(timestep_embedding(timestep))
        y = Conditioning(time, nn.Embed(cfg.kinds + 1, cfg.width, name="label_embed")(label))
        return FinalLayer(cfg, "shift_scale", name="final")(nn.silu(tokens), y, height, width)


class PatchModel(nn.Module):
    config: PatchConfig

    @nn.compact
    def __call__(self, x, timestep, condition, options=ThinkingOptions()):
        return Base(self.config, name="base")(x, timestep, condition["label"]), {}

    def null_condition(self, condition):
        return {"label": jnp.full_like(condition["label"], self.config.kinds)}

    def example_condition(self, batch):
        return {"label": jax.ShapeDtypeStruct((batch,), jnp.int32)}

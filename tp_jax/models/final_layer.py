"""The final layer of DiT and MMDiT.

B samples, N tokens, D width.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from tp_jax.models.config import TransformerConfig
from tp_jax.models.layers import AdaLN, dense, layer_norm, modulate, unpatchify, zeros
from tp_jax.thinking.layer import Conditioning


class FinalLayer(nn.Module):
    """adaLN, a zero-initialised linear layer, and unpatchify.

    Attributes:
      config: of the model.
      order: order of the two modulations in the published weights: "shift_scale" in DiT,
        "scale_shift" in SD3.
    """

    config: TransformerConfig
    order: str

    @nn.compact
    def __call__(self, x: jax.Array, y: Conditioning, height: int, width: int) -> jax.Array:
        """Map tokens x [B, N, D] to [B, height, width, out_channels] float32."""
        cfg, dtype = self.config, x.dtype
        chunks = AdaLN(cfg.width, 2, dtype, name="adaln")((y.time + y.condition).astype(dtype))
        shift, scale = chunks if self.order == "shift_scale" else chunks[::-1]
        x = modulate(layer_norm(x), shift, scale)
        x = dense(cfg.patch**2 * cfg.out_channels, "out", dtype, zeros, path="final/out")(x)
        return unpatchify(x, cfg.patch, height, width).astype(jnp.float32)

"""The fields of `config.model` for an MMDiT."""

import dataclasses
from typing import Annotated

from tp_jax.messages.errors import UserError
from tp_jax.models.config import (
    ConditionKind,
    Depth,
    OutChannels,
    TextShape,
    TransformerConfig,
    attention_flops,
)
from tp_jax.values import Range
from tp_jax.values.kinds import Size, SizeOrZero

LARGEST_GRID = 4096  # patches per side, which no model comes near
# The sizes that Stability AI published.
SIZES = {
    "SD3-medium": dict(depth=24, width=1536, heads=24),
    "SD3.5-medium": dict(
        depth=24, width=1536, heads=24, qk_norm=True, dual_attention_layers=13, max_grid=384
    ),
    "SD3.5-large": dict(depth=38, width=2432, heads=38, qk_norm=True),
}


@dataclasses.dataclass(frozen=True)
class MMDiTConfig(TransformerConfig):
    """The fields of `config.model` for an MMDiT; the defaults are those of SD3-medium.

    Attributes:
      text_width: features of each text token.
      pooled_width: features of the pooled text.
      text_tokens: number L of text tokens, used for the shapes of examples and for FLOPs only.
      qk_norm: apply an RMS norm to queries and keys, per head.
      dual_attention_layers: number of blocks, from the first, with a second attention over the
        vision tokens only.
      max_grid: side of the position table in patches. Smaller images use its centre.
      base_grid: side in patches to which the coordinates of the position table are scaled.
      grid_offset: what is subtracted from the scaled coordinates, in patches of `base_grid`.

    Example:
      >>> config = MMDiTConfig()
      >>> config.tokens, config.condition_kind, config.text
      (4096, 'text', TextShape(tokens=154, width=4096, pooled_width=2048))
    """

    image_size: Size = 128
    channels: Size = 16
    out_channels: OutChannels = 16
    depth: Depth = 24
    width: Size = 1536
    heads: Size = 24
    text_width: Size = 4096
    pooled_width: Size = 2048
    text_tokens: Size = 154
    qk_norm: bool = False
    dual_attention_layers: SizeOrZero = 0
    max_grid: Annotated[int, Range(1, LARGEST_GRID)] = 192
    base_grid: Annotated[int, Range(1, LARGEST_GRID)] = 64
    grid_offset: Annotated[float, Range(-LARGEST_GRID, LARGEST_GRID)] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dual_attention_layers >= self.depth:
            raise UserError(
                f"config.model.dual_attention_layers={self.dual_attention_layers}: "
                f"must be 0 to {self.depth - 1}"
            )
        if self.image_size // self.patch > self.max_grid:
            raise UserError(
                f"config.model.image_size={self.image_size} has more patches per side than "
                f"config.model.max_grid={self.max_grid}"
            )

    @property
    def condition_kind(self) -> ConditionKind:
        """Return "text"."""
        return "text"

    @property
    def text(self) -> TextShape:
        """Return the shape of the encoded text."""
        return TextShape(self.text_tokens, self.text_width, self.pooled_width)

    @property
    def size_limits(self) -> tuple[int, int]:
        """Return the side of a patch, and that of an image with `max_grid` patches per side."""
        return self.patch, self.patch * self.max_grid

    def block_flops(self, layer: int) -> float:
        """Return the FLOPs of one block without thinking, forward, for one sample."""
        n, d, text = self.tokens, self.width, self.text_tokens
        last, dual = layer == self.depth - 1, layer < self.dual_attention_layers
        linear = 24 * n + (6 if last else 24) * text + (8 * n if dual else 0)
        adaln = 2 * (9 if dual else 6) + 2 * (2 if last else 6)
        return (linear + adaln) * d**2 + self.block_attention_flops(layer)

    def block_output_flops(self, layer: int) -> float:
        """Return the part of `block_flops` that depends on the output of attention."""
        text = 0 if layer == self.depth - 1 else self.text_tokens
        return 18 * (self.tokens + text) * self.width**2

    def block_attention_flops(self, layer: int) -> float:
        """Return the part of `block_flops` that is attention."""
        dual = layer < self.dual_attention_layers
        joint = super().block_attention_flops(layer)
        return joint + (attention_flops(self.tokens, self.width) if dual else 0)

    def embedding_flops(self) -> float:
        """Return the FLOPs of all embeddings and the final modulation, for one sample."""
        text = 2 * self.text_tokens * self.text_width * self.width
        pooled = 2 * (self.pooled_width + self.width) * self.width
        return super().embedding_flops() + text + pooled

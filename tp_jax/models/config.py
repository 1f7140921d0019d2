"""The config fields that every transformer shares, and what a model says about itself.

This module and the configs of the models don't import jax, so that commands can show their help
and check a config quickly.
"""

import abc
import dataclasses
from typing import Literal, get_args

from tp_jax.messages.errors import UserError
from tp_jax.thinking import ThinkingConfig

AttentionImplementation = Literal["auto", "xla", "cudnn"]
ATTENTION: tuple[AttentionImplementation, ...] = get_args(AttentionImplementation)
# The keys of `stack.REMAT_POLICIES`.
REMAT = ("none", "dots", "full")
# What a condition holds: a class label, encoded text, or a frame (with a label beside it).
Takes = Literal["label", "text", "frame"]


@dataclasses.dataclass(frozen=True)
class TextShape:
    """The shape of the text that a model takes.

    Attributes:
      tokens: number L of text tokens.
      width, pooled_width: features of a text token, and of the pooled text.
    """

    tokens: int
    width: int
    pooled_width: int


@dataclasses.dataclass(frozen=True)
class TransformerConfig(abc.ABC):
    """The fields that all models share, and what a model says about itself.

    Code outside `models/` asks these properties and never for a kind of model.

    Attributes:
      image_size: height and width of what is diffused (pixels or latents).
      channels, out_channels: of the input, and of the output (twice that, with a learned
        variance).
      patch: patch size; must divide image_size.
      depth, width, heads: number of blocks, D, and attention heads.
      dtype: compute dtype, "float32" or "bfloat16"; parameters are always float32.
      remat: what the backward pass keeps of a block: "none" recomputes nothing, "dots" keeps
        matrix products, "full" keeps the blocks' inputs alone.
      scan_blocks: scan over stacked blocks; False unrolls them.
      attention: "auto", "xla" or "cudnn".
      thinking: where and how the model thinks.

    Raises:
      UserError: a value out of range, naming the field.
    """

    image_size: int = 32
    channels: int = 4
    out_channels: int = 8
    patch: int = 2
    depth: int = 28
    width: int = 1152
    heads: int = 16
    dtype: str = "float32"
    remat: str = "none"
    scan_blocks: bool = True
    attention: AttentionImplementation = "auto"
    thinking: ThinkingConfig = dataclasses.field(default_factory=ThinkingConfig)

    def __post_init__(self) -> None:
        for field in ("image_size", "channels", "out_channels", "patch", "depth", "width", "heads"):
            if getattr(self, field) < 1:
                raise UserError(f"config.model.{field}={getattr(self, field)}: must be 1 or more")
        if self.image_size % self.patch:
            raise UserError(
                f"config.model.patch={self.patch} does not divide "
                f"config.model.image_size={self.image_size}: choose a divisor"
            )
        if self.width % self.heads or self.width % 4:
            raise UserError(
                f"config.model.width={self.width} must be a multiple of "
                f"config.model.heads={self.heads} and of 4"
            )
        choices = {
            "dtype": ("float32", "bfloat16"),
            "remat": REMAT,
            "attention": ATTENTION,
        }
        for field, allowed in choices.items():
            if getattr(self, field) not in allowed:
                raise UserError(
                    f"config.model.{field}={getattr(self, field)!r}: "
                    f"choose one of {', '.join(allowed)}"
                )
        self.thinking.check_depth(self.depth)

    @property
    def tokens(self) -> int:
        """Number N of vision tokens of an image of `image_size`."""
        return (self.image_size // self.patch) ** 2

    @property
    @abc.abstractmethod
    def takes(self) -> Takes:
        """What the model is conditioned on."""

    @property
    def classes(self) -> int:
        """Number of classes that the model tells apart; 0 where it takes no labels."""
        return 0

    @property
    def unconditional(self) -> bool:
        """Whether the condition says nothing about the image, so that guidance has no effect."""
        return False

    @property
    def text(self) -> TextShape | None:
        """The text that the model takes; None where it takes none."""
        return None

    @property
    def sides(self) -> tuple[int, int] | None:
        """Unit and maximum of an image's sides; None where only `image_size` can be drawn."""
        return None

    @abc.abstractmethod
    def block_flops(self, layer: int) -> float:
        """FLOPs of one block without thinking: forward pass, one sample."""

    def embedding_flops(self) -> float:
        """FLOPs of embedding timestep, class and both ends' modulation: forward, one sample."""
        return 2 * (256 + self.width) * self.width + 4 * self.width**2


def attention_flops(tokens: int, width: int) -> float:
    """FLOPs of QKᵀ and of its product with V, for one sample."""
    return 4 * tokens**2 * width

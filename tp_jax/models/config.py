"""The config fields that all models share, and the properties of a model that other code asks for.

This module and the configs of the models don't import jax, so that commands can show their help
and check a config quickly.
"""

import abc
import dataclasses
from typing import Annotated, Literal

from tp_jax.messages.errors import UserError
from tp_jax.thinking import ThinkingConfig
from tp_jax.values import Choice, Range, check_fields
from tp_jax.values.kinds import Dtype, Size

AttentionImplementation = Literal["auto", "xla", "cudnn", "splash"]
# The keys of `stack.REMAT_POLICIES`.
REMAT = ("none", "dots", "full")
Depth = Annotated[int, Range(1, 4096)]
# Twice the channels, with a learned variance.
OutChannels = Annotated[int, Range(1, 2**17)]
# What a model is conditioned on: a class label, encoded text, or a frame and a label.
ConditionKind = Literal["label", "text", "frame"]


@dataclasses.dataclass(frozen=True)
class TextShape:
    """The shape of the encoded text that a model is conditioned on.

    Attributes:
      tokens: number L of text tokens.
      width: features of each text token.
      pooled_width: features of the pooled text.
    """

    tokens: int
    width: int
    pooled_width: int


@dataclasses.dataclass(frozen=True)
class TransformerConfig(abc.ABC):
    """The config fields that all models share.

    Code outside `models/` uses the properties of this class instead of testing for a kind of model.

    Attributes:
      image_size: height and width of the data that is diffused, in pixels or latents.
      channels: input channels.
      out_channels: output channels; twice the input channels with a learned variance.
      patch: side of a patch; must divide image_size.
      depth: number of blocks.
      width: D.
      heads: number of attention heads.
      dtype: compute dtype, "float32" or "bfloat16"; parameters are always float32.
      remat: what the forward pass of a block stores for the backward pass: "dots" stores the
        matrix products, "none" everything, "full" only the input of the block.
      scan_blocks: scan over stacked blocks; False unrolls them.
      attention: implementation of attention: "xla", "cudnn" (NVIDIA GPUs), "splash" (TPUs), or
        "auto", which chooses by the device and the number of tokens.
      thinking: where and how the model thinks.

    Raises:
      UserError: a value is out of range; the message names the field.
    """

    image_size: Size = 32
    channels: Size = 4
    out_channels: OutChannels = 8
    patch: Size = 2
    depth: Depth = 28
    width: Size = 1152
    heads: Size = 16
    dtype: Dtype = "float32"
    remat: Annotated[str, Choice(*REMAT)] = "dots"
    scan_blocks: bool = True
    attention: AttentionImplementation = "auto"
    thinking: ThinkingConfig = dataclasses.field(default_factory=ThinkingConfig)

    def __post_init__(self) -> None:
        check_fields(self, "config.model.")
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
        self.thinking.check_depth(self.depth)

    @property
    def tokens(self) -> int:
        """Return the number N of vision tokens for an image of `image_size`."""
        return (self.image_size // self.patch) ** 2

    @property
    @abc.abstractmethod
    def condition_kind(self) -> ConditionKind:
        """Return what the model is conditioned on."""

    @property
    def classes(self) -> int:
        """Return the number of classes; 0 if the model isn't conditioned on labels."""
        return 0

    @property
    def unconditional(self) -> bool:
        """Return whether the condition carries no information, so that guidance has no effect."""
        return False

    @property
    def has_null(self) -> bool:
        """Return whether the model has a null condition, which guidance and dropout need."""
        return True

    @property
    def text(self) -> TextShape | None:
        """Return the shape of the text; None if the model isn't conditioned on text."""
        return None

    @property
    def size_limits(self) -> tuple[int, int] | None:
        """Return (unit, maximum) of height and width; None if only `image_size` is possible.

        Height and width, in the unit of `image_size`, must be multiples of the unit.
        """
        return None

    @property
    def trained_latent_steps(self) -> range:
        """Return the numbers of latent steps that training draws from, all equally likely."""
        return self.thinking.trained_latent_steps

    @property
    def trained_latent_steps_text(self) -> str:
        """Return the numbers of latent steps in training as "2" or "1 to 4"."""
        first, last = self.trained_latent_steps[0], self.trained_latent_steps[-1]
        return str(first) if first == last else f"{first} to {last}"

    @abc.abstractmethod
    def block_flops(self, layer: int) -> float:
        """Return the FLOPs of one block without thinking, forward, for one sample."""

    def block_attention_flops(self, layer: int) -> float:
        """Return the part of `block_flops` that is attention."""
        return attention_flops(self.tokens + (self.text.tokens if self.text else 0), self.width)

    def block_output_flops(self, layer: int) -> float:
        """Return the part of `block_flops` that depends on the output of attention."""
        return self.block_flops(layer)

    def embedding_flops(self) -> float:
        """Return the FLOPs of the timestep embedding and the final modulation, for one sample."""
        return 2 * (256 + self.width) * self.width + 4 * self.width**2


def attention_flops(tokens: int, width: int) -> float:
    """Return the FLOPs of the two matrix products of attention, for one sample."""
    return 4 * tokens**2 * width

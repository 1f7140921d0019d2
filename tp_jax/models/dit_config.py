"""The fields of `config.model` for a DiT."""

import dataclasses
from typing import Annotated

from tp_jax.messages.errors import UserError
from tp_jax.models.config import ConditionKind, TransformerConfig, attention_flops
from tp_jax.values import Choice, Range

# The sizes that facebookresearch/DiT published.
SIZES = {
    "S": dict(depth=12, width=384, heads=6),
    "B": dict(depth=12, width=768, heads=12),
    "L": dict(depth=24, width=1024, heads=16),
    "XL": dict(depth=28, width=1152, heads=16),
}


@dataclasses.dataclass(frozen=True)
class DiTConfig(TransformerConfig):
    """The fields of `config.model` for a DiT; the defaults are those of DiT-XL/2.

    Attributes:
      mlp_ratio: hidden width of the MLPs, as a multiple of D.
      num_classes: number of classes; with 0 the model is unconditional, and its only label is 0.
      null_class: whether the label table has a last row for "no class", as guidance and the dropout
        of labels need it. A model without classes has only that row.
      time_input: what the sinusoids of the timestep embedding get: the "timestep", 0 … 1000, or
        "data_share", 1 - timestep / 1000, which SiT calls t.
      frame: how the model is conditioned on a frame: "" not at all; "channels" concatenates the
        frame to the input; "tokens" adds its patches to the tokens. With a frame, the output is
        the frame plus what the final layer returns.

    Example:
      >>> from tp_jax.thinking import ThinkingConfig
      >>> config = DiTConfig(depth=2, width=64, heads=4, thinking=ThinkingConfig(layers=(1,)))
      >>> config.tokens, config.condition_kind, config.classes
      (256, 'label', 1000)
    """

    mlp_ratio: Annotated[int, Range(1, 1024)] = 4
    num_classes: Annotated[int, Range(0, 10**6)] = 1000
    null_class: bool = True
    time_input: Annotated[str, Choice("timestep", "data_share")] = "timestep"
    frame: Annotated[
        str, Choice("", "channels", "tokens"), "choose channels or tokens, or leave it empty"
    ] = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.null_class and self.num_classes < 1:
            raise UserError(
                f"config.model.null_class=False needs config.model.num_classes of 1 or more, not "
                f"{self.num_classes}: a model without classes has only the null class"
            )

    @property
    def tokens(self) -> int:
        """Return the number N of vision tokens, including those of the frame."""
        return super().tokens * (2 if self.frame == "tokens" else 1)

    @property
    def condition_kind(self) -> ConditionKind:
        """Return "frame" if `frame` is set, else "label"."""
        return "frame" if self.frame else "label"

    @property
    def classes(self) -> int:
        """Return `num_classes`."""
        return self.num_classes

    @property
    def label_rows(self) -> int:
        """Return the number of rows of the label table: the classes and, if any, the null class."""
        return self.num_classes + self.null_class

    @property
    def has_null(self) -> bool:
        """Return whether there is a null class."""
        return self.null_class

    @property
    def unconditional(self) -> bool:
        """Return whether there are no classes."""
        return self.num_classes == 0

    def block_flops(self, layer: int) -> float:
        """Return the FLOPs of one block without thinking, forward, for one sample."""
        n, d = self.tokens, self.width
        linear = 8 + 4 * self.mlp_ratio
        return linear * n * d**2 + attention_flops(n, d) + 12 * d**2

    def block_output_flops(self, layer: int) -> float:
        """Return the part of `block_flops` that depends on the output of attention."""
        return (2 + 4 * self.mlp_ratio) * self.tokens * self.width**2


def check_frames(config: TransformerConfig) -> None:
    """Raise a UserError if the latent steps of a model that is conditioned on a frame are unfit."""
    thinking = config.thinking
    if not thinking.layers:
        raise UserError(
            "config.model.thinking.layers=(): a model with config.model.frame decodes one frame "
            "for each latent step: name a block"
        )
    if thinking.halting == "ponder":
        raise UserError(
            "config.model.thinking.halting='ponder' doesn't fit a model conditioned on a frame, "
            "which is trained to make a move at every latent step: use 'none' or 'threshold'"
        )
    if config.trained_latent_steps[-1] > thinking.latent_steps:
        raise UserError(
            f"config.model.thinking.latent_steps_range={thinking.latent_steps_range}: the data "
            f"have frames for {thinking.latent_steps} moves, config.model.thinking.latent_steps: "
            f"raise it, or end the range there"
        )

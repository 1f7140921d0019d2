"""The fields of `config.model.thinking`."""

import dataclasses
from typing import cast

from tp_jax.messages.errors import UserError

CHOICES = {
    "gate": ("learned", "random", "first"),
    "base_input": ("modulated", "recursed"),
    "dispatch": ("auto", "dense", "grouped", "expert_parallel"),
}
GATE_INPUTS = ("token", "time", "condition")


@dataclasses.dataclass(frozen=True)
class ThinkingConfig:
    """Where and how a model thinks.

    Source: arXiv 2604.25299. The README of this folder says which choices are the paper's.

    Attributes:
      layers: 0-based indices of the blocks that think; () is the plain base model.
      experts: number M of LoRA experts per layer.
      rank: LoRA rank r.
      latent_steps: number T of latent steps. Sampling may use another number.
      temperature: τ of the Gumbel-softmax.
      gate: "learned"; "random" (uniform per token and latent step); "first" (always expert 0).
      gate_inputs: inputs of the learned gate: one or more of "token", "time" and "condition".
      modulate: apply the block's adaLN scale and shift to the normalised tokens.
      base_input: input of the base projection at the last latent step: "modulated" (the block's
        modulated input) or "recursed" (the same plus the tokens that the experts see).
      base_every_step: apply the base projection at every latent step, to the tokens that enter that
        step, not only at the last to the block's input. With "recursed", the input at the last step
        is that of `base_input`.
      share_across_steps: use the same experts at all latent steps; False gives each its own. Fewer
        latent steps than trained then use the first experts, and at the last step the last ones.
      balance_weight: weight of the load-balance loss; 0 leaves it out.
      dispatch: how the experts are computed: "dense", "grouped", "expert_parallel", or "auto" for
        the cheapest. All give the same numbers.
      gate_width: hidden width of the learned gate.

    Raises:
      UserError: a value is out of range; the message names the field.

    Example:
      >>> config = ThinkingConfig(layers=(4, 8, 12), experts=5, latent_steps=5)
      >>> config.rank, config.gate, config.dispatch
      (128, 'learned', 'auto')
      >>> ThinkingConfig(experts=0)
      Traceback (most recent call last):
      tp_jax.messages.errors.UserError: config.model.thinking.experts=0: must be 1 or more
    """

    layers: tuple[int, ...] = (12,)
    experts: int = 2
    rank: int = 128
    latent_steps: int = 2
    temperature: float = 5.0
    gate: str = "learned"
    gate_inputs: tuple[str, ...] = GATE_INPUTS
    modulate: bool = True
    base_input: str = "modulated"
    base_every_step: bool = False
    share_across_steps: bool = True
    balance_weight: float = 0.0
    dispatch: str = "auto"
    gate_width: int = 128

    def __post_init__(self):
        for field in ("layers", "gate_inputs"):
            object.__setattr__(self, field, tuple(getattr(self, field)))
        if not all(isinstance(layer, int) for layer in cast("tuple[object, ...]", self.layers)):
            raise UserError(
                f"config.model.thinking.layers={self.layers}: give block numbers, as in 4,8,12"
            )
        for field in ("experts", "rank", "latent_steps", "gate_width"):
            if getattr(self, field) < 1:
                raise UserError(
                    f"config.model.thinking.{field}={getattr(self, field)}: must be 1 or more"
                )
        if self.temperature <= 0:
            raise UserError(
                f"config.model.thinking.temperature={self.temperature}: must be above 0"
            )
        for field, choices in CHOICES.items():
            if getattr(self, field) not in choices:
                raise UserError(
                    f"config.model.thinking.{field}={getattr(self, field)!r}: "
                    f"choose one of {', '.join(choices)}"
                )
        if not self.gate_inputs or set(self.gate_inputs) - set(GATE_INPUTS):
            raise UserError(
                f"config.model.thinking.gate_inputs={self.gate_inputs}: "
                f"name at least one of {', '.join(GATE_INPUTS)}"
            )
        if len(set(self.layers)) != len(self.layers):
            raise UserError(f"config.model.thinking.layers={self.layers}: names a block twice")

    def check_latent_steps(self, steps: int) -> None:
        """Raise a UserError if the model has no experts for this many latent steps."""
        if steps < 1:
            raise UserError(f"latent_steps={steps}: must be 1 or more")
        if not self.share_across_steps and steps > self.latent_steps:
            raise UserError(
                f"latent_steps={steps}, but with share_across_steps=False the model has experts "
                f"for {self.latent_steps} latent steps only: use {self.latent_steps} or fewer"
            )

    def check_depth(self, depth: int) -> None:
        """Raise a UserError if `layers` names a block that a model of `depth` blocks lacks."""
        for layer in self.layers:
            if not 0 <= layer < depth:
                raise UserError(
                    f"config.model.thinking.layers={self.layers}: block {layer} does not exist; "
                    f"the model has blocks 0 to {depth - 1}"
                )

"""The fields of `config.model.thinking`."""

import dataclasses
from typing import Annotated

from tp_jax.messages.errors import UserError
from tp_jax.values import Ascending, Choice, Range, check_fields, checked
from tp_jax.values.kinds import LatentSteps, NonNegative, Positive, Size

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
      latent_steps_range: (a, b), the numbers of latent steps from which training draws one for
        each update, all equally likely; () trains `latent_steps` alone.
      temperature: τ of the Gumbel-softmax.
      gate: "learned"; "random" (uniform per token and latent step); "first" (always expert 0).
      gate_inputs: inputs of the learned gate: one or more of "token", "time" and "condition".
      gate_token: what the gate reads of a token: "modulated" is LN(ã); "unmodulated" is LN of the
        block's input before adaLN plus ã - x̃, which doesn't follow the timestep through adaLN.
      modulate: apply the block's adaLN scale and shift to the normalised tokens.
      base_input: input of the base projection at the last latent step: "modulated" (the block's
        modulated input) or "recursed" (the same plus the tokens that the experts see).
      base_every_step: apply the base projection at every latent step, to the tokens that enter that
        step, not only at the last to the block's input. With "recursed", the input at the last step
        is that of `base_input`.
      share_across_steps: use the same experts at all latent steps; False gives each its own. Fewer
        latent steps than trained then use the first experts, and at the last step the last ones.
      balance_weight: weight of the load-balance loss; 0 leaves it out.
      halting: "none"; "threshold" (in sampling, a token halts when it moves little); "ponder" (a
        halting unit is trained to tell when a token halts). See `thinking/halting.py`.
      halting_epsilon: ε of "threshold": the relative move at or below which a token halts.
      ponder_weight: weight β of the divergence from the prior in the loss of "ponder".
      ponder_prior: λ_0, the probability in the prior of "ponder" that a token halts after a latent
        step. The halting unit starts with it.
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
      tp_jax.messages.errors.UserError: config.model.thinking.experts=0: must be 1 or more, ...
    """

    layers: Annotated[tuple[int, ...], "give block numbers, as in 4,8,12"] = (12,)
    experts: Size = 2
    rank: Size = 128
    latent_steps: LatentSteps = 2
    latent_steps_range: Annotated[tuple[LatentSteps, ...], Ascending()] = ()
    temperature: Positive = 5.0
    gate: Annotated[str, Choice("learned", "random", "first")] = "learned"
    gate_inputs: Annotated[
        tuple[str, ...], Choice(*GATE_INPUTS), f"name at least one of {', '.join(GATE_INPUTS)}"
    ] = GATE_INPUTS
    gate_token: Annotated[str, Choice("modulated", "unmodulated")] = "modulated"
    modulate: bool = True
    base_input: Annotated[str, Choice("modulated", "recursed")] = "modulated"
    base_every_step: bool = False
    share_across_steps: bool = True
    balance_weight: NonNegative = 0.0
    halting: Annotated[str, Choice("none", "threshold", "ponder")] = "none"
    halting_epsilon: NonNegative = 0.1
    ponder_weight: NonNegative = 0.01
    ponder_prior: Annotated[float, Range(0, 1, above=True, below=True)] = 0.2
    dispatch: Annotated[str, Choice("auto", "dense", "grouped", "expert_parallel")] = "auto"
    gate_width: Size = 128

    def __post_init__(self) -> None:
        check_fields(self, "config.model.thinking.")
        for field in ("layers", "gate_inputs"):
            values = getattr(self, field)
            if len(set(values)) != len(values):
                what = "a block" if field == "layers" else "an input"
                raise UserError(f"config.model.thinking.{field}={values}: names {what} twice")
        if not self.gate_inputs:
            raise UserError(
                f"config.model.thinking.gate_inputs=(): name at least one of "
                f"{', '.join(GATE_INPUTS)}"
            )
        self._check_range()

    def _check_range(self) -> None:
        given = self.latent_steps_range
        if not given:
            return
        name = f"config.model.thinking.latent_steps_range={given}"
        if len(given) != 2:
            raise UserError(f"{name}: give the smallest and the largest number, as in 1,4, or ()")
        if self.latent_steps not in self.trained_latent_steps:
            raise UserError(
                f"{name} leaves out config.model.thinking.latent_steps={self.latent_steps}, with "
                f"which the model samples: set one of them so that it is inside"
            )
        self.check_latent_steps(given[1], name)

    @property
    def trained_latent_steps(self) -> range:
        """Return the numbers of latent steps that training draws from, all equally likely."""
        first, last = self.latent_steps_range or (self.latent_steps, self.latent_steps)
        return range(first, last + 1)

    def check_latent_steps(self, steps: int, name: str = "") -> None:
        """Raise a UserError if the model has no experts for this many latent steps.

        Args:
          steps: number of latent steps.
          name: what asks for it, for the error message; by default "latent_steps".
        """
        checked("latent_steps", steps, LatentSteps)
        name = name or f"latent_steps={steps}"
        if not self.share_across_steps and steps > self.latent_steps:
            raise UserError(
                f"{name}, but with share_across_steps=False the model has experts for "
                f"{self.latent_steps} latent steps only: use {self.latent_steps} or fewer"
            )

    def check_depth(self, depth: int) -> None:
        """Raise a UserError if `layers` names a block that a model of `depth` blocks lacks."""
        for layer in self.layers:
            if not 0 <= layer < depth:
                raise UserError(
                    f"config.model.thinking.layers={self.layers}: block {layer} does not exist; "
                    f"the model has blocks 0 to {depth - 1}"
                )

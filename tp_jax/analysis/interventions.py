"""Change how a model thinks, sample the same noise again, and compare the images.

S sampler steps, T latent steps, B samples, N vision tokens, M experts.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tp_jax.analysis.blocks import LeftOut, as_json
from tp_jax.analysis.collect import SHOWN
from tp_jax.analysis.samples import Samples
from tp_jax.evals.task import Judgement
from tp_jax.messages.errors import NotFiniteError, UserError
from tp_jax.messages.progress import progress_bar
from tp_jax.models import build_model
from tp_jax.models.parameters import Params
from tp_jax.pictures.grids import mean_difference, to_uint8
from tp_jax.pictures.tables import picked
from tp_jax.sampling.generator import Generator
from tp_jax.sampling.loaded import Loaded, without_thinking
from tp_jax.thinking.halting import with_last_expert
from tp_jax.thinking.layer import RoutingStats, ThinkingOptions

# Most experts that are switched off one by one, and most numbers of latent steps that are tried.
MAX_EXPERTS, MAX_LATENT_STEPS = 8, 6


@dataclasses.dataclass(frozen=True)
class RoutedLikeAnother:
    """A model in which every sample uses the experts that the gate chooses for another sample.

    Samples 2i and 2i + 1 of a batch exchange their routes, at every latent step of every
    prediction. It can stand in for the model in a `Generator` with an even batch size.

    Attributes:
      model: the DiT or MMDiT.
    """

    model: nn.Module

    @property
    def config(self) -> Any:
        """Return the config of the model."""
        return cast("Any", self.model).config

    def apply(
        self,
        variables: Any,
        x: jax.Array,
        timestep: jax.Array,
        condition: dict[str, jax.Array],
        options: ThinkingOptions = ThinkingOptions(),
    ) -> tuple[jax.Array, dict[int, RoutingStats]]:
        """Run the model once for the routes, and once with the routes exchanged."""
        # A recursion that is stopped after latent step t has the routes of the whole one.
        traced = dataclasses.replace(options, trace=True, stopped=None)
        arguments = (variables, x, timestep, condition)
        found = cast("Any", self.model.apply(*arguments, traced))[1]
        other = jnp.minimum(jnp.arange(len(x)) ^ 1, len(x) - 1)
        # A token that has halted in the other sample may still be live here.
        experts = self.config.thinking.experts
        taken = {
            block: with_last_expert(jnp.asarray(stats.expert), experts)
            for block, stats in found.items()
        }
        routes = {block: expert[:, other] for block, expert in taken.items()}
        return cast(
            "Any", self.model.apply(*arguments, dataclasses.replace(options, routes=routes))
        )

    def null_condition(self, condition: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Return the null condition of the model."""
        return cast("Any", self.model).null_condition(condition)


@dataclasses.dataclass(frozen=True)
class Intervention:
    """A changed model.

    Attributes:
      name: short, such as "expert 0 off".
      what: what was changed.
      generator: samples from the changed model.
      params: its parameters.
    """

    name: str
    what: str
    generator: Generator
    params: Params


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What an intervention does to the first samples.

    Attributes:
      name, what: of the intervention.
      images: uint8 [n, H, W, C].
      difference: mean absolute difference to the unchanged images, in grey levels of 0 … 255.
      judgement: of the suite; None if it can't judge.
    """

    name: str
    what: str
    images: np.ndarray
    difference: float
    judgement: Judgement | None


def choose_interventions(
    loaded: Loaded, generator: Generator, use: np.ndarray, num: int, left_out: LeftOut
) -> Iterator[Intervention]:
    """Yield the interventions that make sense for a model.

    Args:
      loaded: the model.
      generator: samples from it, unchanged.
      use: [M] share of the tokens of each expert; those with the largest are switched off.
      num: number of samples.
      left_out: gets the interventions that make no sense, and why.
    """
    thinking, params = loaded.built.model.thinking, loaded.params
    change = dataclasses.replace
    try:
        base, source = without_thinking(loaded)
        yield Intervention(
            "thinking off", f"the base model: {source}", change(generator, model=base.model),
            base.params,
        )  # fmt: skip
    except UserError as error:
        left_out.add("thinking off", str(error))

    if thinking.experts == 1:
        left_out.add("experts off, other routes", "there is one expert")
    else:
        yield from _of_experts(loaded, generator, use, num, left_out)

    steps = generator.latent_steps or thinking.latent_steps
    fewer = [1 + index for index in picked(steps - 1, MAX_LATENT_STEPS)]
    more = [steps + 1] if thinking.share_across_steps else []
    for number in fewer + more:
        what = f"the recursion ends at latent step {number}, with the base projection there"
        if number < steps:
            what += f": what latent step {number} of {steps} would decode to"
        changed = change(generator, latent_steps=number)
        yield Intervention(f"T = {number}", what, changed, params)
    if steps == 1:
        left_out.add("fewer latent steps", "there is one latent step")


def _of_experts(
    loaded: Loaded, generator: Generator, use: np.ndarray, num: int, left_out: LeftOut
) -> Iterator[Intervention]:
    thinking, params = loaded.built.model.thinking, loaded.params
    order = np.argsort(-use, kind="stable")[:MAX_EXPERTS]
    if len(use) > MAX_EXPERTS:
        left_out.add("experts off", f"only the {MAX_EXPERTS} experts with most tokens are tried")
    for expert in sorted(order.tolist()):
        what = f"the Δ of expert {expert} is zero in every block; tokens are routed as before"
        off = without_expert(params, expert, share=thinking.share_across_steps)
        yield Intervention(f"expert {expert} off", what, generator, off)
    if thinking.gate != "learned":
        left_out.add("other routes", f'gate="{thinking.gate}" doesn\'t look at the tokens')
        return
    random = with_random_gate(loaded)
    yield Intervention(
        "random route",
        "every token takes a random expert at every latent step",
        dataclasses.replace(generator, model=random.model),
        random.params,
    )
    if num < 2:
        left_out.add("route of another sample", "it needs two samples")
        return
    yield Intervention(
        "route of another sample",
        "every token takes the expert of the token at the same place in another sample",
        dataclasses.replace(generator, model=cast("Any", RoutedLikeAnother(loaded.model))),
        params,
    )


def with_random_gate(loaded: Loaded) -> Loaded:
    """Return the model with `gate="random"`, which has no parameters, in place of its gate."""
    thinking = dataclasses.replace(loaded.built.model.thinking, gate="random")
    config = dataclasses.replace(loaded.built.model, thinking=thinking)
    layers = {
        name: {key: leaf for key, leaf in layer.items() if key != "gate"}
        for name, layer in loaded.params["thinking"].items()
    }
    return dataclasses.replace(
        loaded,
        model=build_model(config),
        built=dataclasses.replace(loaded.built, model=config),
        params={**loaded.params, "thinking": layers},
    )


def without_expert(params: Params, expert: int, *, share: bool) -> Params:
    """Return the parameters with the Δ of one expert zero in every block.

    Args:
      params: {"base", "thinking"}.
      expert: its number.
      share: `config.model.thinking.share_across_steps`.
    """
    name = "experts" if share else "step_experts"

    def switch_off(lora_b: jax.Array) -> jax.Array:
        return lora_b.at[expert].set(0) if share else lora_b.at[:, expert].set(0)

    def change(layer: dict[str, Any]) -> dict[str, Any]:
        lora_b = layer[name]["lora_b"]
        # Under jit, as other processes may hold parts of the array.
        changed = jax.jit(switch_off, out_shardings=lora_b.sharding)(lora_b)
        return {**layer, name: {**layer[name], "lora_b": changed}}

    layers = {key: change(layer) for key, layer in params["thinking"].items()}
    return {**params, "thinking": layers}


def intervene(
    loaded: Loaded,
    generator: Generator,
    samples: Samples,
    images: np.ndarray,
    use: np.ndarray,
    seed: int,
    left_out: LeftOut,
) -> tuple[list[Outcome], Judgement | None]:
    """Change the model in every way, and sample the first samples again from the same noise.

    Args:
      loaded: the model.
      generator: samples from it, unchanged.
      samples: what was sampled.
      images: uint8 [n, H, W, C], the first samples, unchanged; n ≤ `SHOWN`.
      use: [M] share of the tokens of each expert.
      seed: seed of the samples.
      left_out: gets what can't be done.

    Returns:
      The outcomes, and the judgement of the unchanged model.
    """
    num = min(len(images), SHOWN)
    if samples.task is not None:
        num = min(num, len(samples.captions))
    # Even, for `RoutedLikeAnother`.
    num -= num % 2 if num > 1 else 0
    size = generator.batch_size_of(num)
    generator = dataclasses.replace(generator, batch_size=size * (1 + size % 2))
    rows, images = samples.rows[:num], images[:num]

    def judge(generator: Generator, params: Params, images: np.ndarray) -> Judgement | None:
        if samples.task is None:
            return None
        return samples.task.judge(generator, params, images, seed)

    chosen = list(choose_interventions(loaded, generator, use, num, left_out))
    outcomes = []
    with progress_bar(len(chosen) + 1, "interventions", "model") as bar:
        unchanged = judge(generator, loaded.params, images)
        bar.update()
        for each in chosen:
            try:
                batches = each.generator.batches(each.params, samples.conditions, seed, rows=rows)
                changed = to_uint8(np.concatenate(list(batches)))
            except NotFiniteError as error:
                left_out.add(each.name, str(error))
            else:
                difference = mean_difference(changed, images)
                judgement = judge(each.generator, each.params, changed)
                outcomes.append(
                    Outcome(each.name, each.what, changed, as_json(difference), judgement)
                )
            bar.update()
    return outcomes, unchanged

"""Pictures of what thinking does: the base beside 1 … T latent steps, and the experts of tokens.

S sampler steps, T latent steps, B samples, N vision tokens, M experts.
"""

import dataclasses
from typing import Any

import numpy as np

from tp_jax.messages.errors import UserError
from tp_jax.pictures.experts import paint_experts
from tp_jax.pictures.galleries import class_caption
from tp_jax.pictures.grids import mean_difference, to_uint8
from tp_jax.pictures.tables import Row, make_table, picked
from tp_jax.sampling.generator import Generator
from tp_jax.sampling.loaded import Loaded, without_thinking
from tp_jax.sampling.plan import SamplePlan
from tp_jax.sampling.request import make_generator
from tp_jax.workdir.changes import read_class_names

# How much the pictures show at most.
SAMPLES, LATENT_STEPS, BLOCKS, TIMESTEPS = 10, 5, 3, 3
# Columns of the two pictures have about this width in pixels altogether.
_WIDTH, _SMALLEST_CELL, _LARGEST_CELL = 1000, 64, 160


@dataclasses.dataclass(frozen=True)
class ThinkingPictures:
    """What thinking does to the first samples of a request, as two pictures and a summary.

    Attributes:
      comparison: uint8 [height, width, 3], a table of the samples: a row without thinking, and one
        for each number of latent steps, all from the same noise.
      routing: uint8 [height, width, 3], a table of the experts of the tokens: a row for each block,
        timestep and latent step.
      summary: a JSON object with what the pictures show, and differences in grey levels.
    """

    comparison: np.ndarray
    routing: np.ndarray
    summary: dict[str, Any]


def check_thinks(loaded: Loaded) -> None:
    """Raise a UserError if the model has no thinking layers to show."""
    if not loaded.built.model.thinking.layers:
        raise UserError(
            "--show_thinking: the model has no thinking layers (config.model.thinking.layers is "
            "empty): leave it out"
        )


def chosen_latent_steps(latent_steps: int) -> list[int]:
    """Return the numbers of latent steps to compare, from 1 to T, at most `LATENT_STEPS` of them.

    Example:
      >>> chosen_latent_steps(1), chosen_latent_steps(4), chosen_latent_steps(12)
      ([1], [1, 2, 3, 4], [1, 4, 6, 9, 12])
    """
    return picked(latent_steps, LATENT_STEPS, first=1)


def picture_thinking(
    loaded: Loaded, generator: Generator, plan: SamplePlan, seed: int, *, unchecked: bool = False
) -> ThinkingPictures:
    """Sample the first conditions of a plan with and without thinking, and draw the differences.

    Args:
      loaded: a model with thinking layers.
      generator: its generator; its number of latent steps is the largest that is shown.
      plan: the conditions, of which the first `SAMPLES` are used.
      seed: seed of the noise.
      unchecked: accept a base whose checksums are missing or damaged.

    Raises:
      UserError: the base that the model was trained from doesn't exist or doesn't fit.
    """
    thinking = loaded.built.model.thinking
    rows = plan.rows[:SAMPLES]
    last = generator.latent_steps or thinking.latent_steps
    steps = chosen_latent_steps(last)
    sampler = dataclasses.asdict(generator.sampler)
    columns = _captions(loaded, plan, len(rows))
    cell = int(np.clip(_WIDTH // len(columns), _SMALLEST_CELL, _LARGEST_CELL))

    def sampled(model: Loaded, latent_steps: int | None) -> np.ndarray:
        made = make_generator(
            model,
            sampler,
            generator.batch_size,
            latent_steps,
            halting_epsilon=generator.halting_epsilon,
        )
        made = dataclasses.replace(made, size=generator.size)
        batches = made.batches(model.params, plan.conditions, seed, rows=rows)
        return to_uint8(np.concatenate(list(batches)))

    floats, timesteps, traces = generator.trace_all(loaded.params, plan.conditions, seed, rows)
    images, experts = to_uint8(floats), {block: trace.expert for block, trace in traces.items()}
    base, source = without_thinking(loaded, allow_unchecked=unchecked)
    plain = sampled(base, None)
    by_steps = {step: sampled(loaded, step) for step in steps[:-1]} | {last: images}
    compared = {step: mean_difference(made, images) for step, made in by_steps.items()}
    without = mean_difference(plain, images)
    away = f"grey levels from T = {last}"
    table = [Row(f"without thinking ({_short(source)}): {without:.1f} {away}", plain)]
    for step, made in by_steps.items():
        trained = ", as trained" if step in loaded.built.model.trained_latent_steps else ""
        distance = "" if step == last else f": {compared[step]:.1f} {away}"
        table.append(Row(f"T = {step}{trained}{distance}", made))
    maps = [Row(f"T = {last}", images), *_routing_rows(experts, timesteps, generator)]
    return ThinkingPictures(
        comparison=make_table(columns, table, cell=cell),
        routing=make_table(columns, maps, experts=thinking.experts, cell=cell),
        summary={
            "train_step": loaded.train_step,
            "samples": len(rows),
            "seed": seed,
            "sampler": sampler["sampler"],
            "sampler_steps": sampler["steps"],
            "guidance_scale": sampler["guidance_scale"],
            "experts": thinking.experts,
            "trained_latent_steps": thinking.latent_steps,
            "latent_steps": last,
            "grey_levels_from_without_thinking": without,
            "grey_levels_from_latent_steps": {str(k): v for k, v in compared.items()},
            "kept_experts": {
                str(block): _kept(chosen, thinking.experts)
                for block, chosen in experts.items()
                if last > 1
            },
        },
    )


def _captions(loaded: Loaded, plan: SamplePlan, count: int) -> list[str]:
    """Return the class name or the prompt of each of the first samples."""
    values = plan.values[:count].tolist()
    if plan.encoder is not None:
        return values
    if loaded.built.model.unconditional:
        return [f"sample {i}" for i in range(count)]
    names = read_class_names(loaded.workdir)
    return [class_caption(label, names) for label in values]


def _routing_rows(
    experts: dict[int, np.ndarray], timesteps: np.ndarray, generator: Generator
) -> list[Row]:
    """Return rows with the experts of the tokens, by block, timestep and latent step."""
    count, blocks = generator.model.config.thinking.experts, sorted(experts)
    rows = []
    for block in (blocks[i] for i in picked(len(blocks), BLOCKS)):
        for step in picked(len(timesteps), TIMESTEPS):
            for latent_step in chosen_latent_steps(experts[block].shape[1]):
                chosen = experts[block][step, latent_step - 1]
                title = f"block {block}, latent step {latent_step}, timestep {timesteps[step]:.0f}"
                rows.append(Row(title, paint_experts(chosen, generator.grid, count)))
    return rows


def _kept(chosen: np.ndarray, experts: int) -> float:
    """Return the share of tokens [S, T, B, N] that keep their expert at the next latent step.

    Tokens that have halted, which have the expert M, don't count. If all have, the share is 1.
    """
    live = chosen[:, 1:] < experts
    same = chosen[:, 1:] == chosen[:, :-1]
    return float(same[live].mean()) if live.any() else 1.0


def _short(source: str) -> str:
    """Return the last part of a path, or a text as it is."""
    return source.rstrip("/").rpartition("/")[2]

"""Collect the scores of a study: STUDY.json, a table in STUDY.md and a plot in STUDY.png."""

import dataclasses
import datetime
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from etils import epath

from tp_jax.files.atomic import write_json, write_text
from tp_jax.files.jsonl import read_json
from tp_jax.messages.errors import UserError
from tp_jax.messages.progress import say
from tp_jax.performance.machine import describe_machine
from tp_jax.studies import STUDIES
from tp_jax.studies.claims import pairs_of
from tp_jax.studies.costs import cost_of
from tp_jax.studies.folder import read_record
from tp_jax.studies.intervals import paired_difference
from tp_jax.studies.measures import Measure, Scored, measures_of
from tp_jax.studies.plan import Cell, Plan
from tp_jax.studies.plot import save_plot
from tp_jax.studies.study import Variant
from tp_jax.studies.table import as_markdown
from tp_jax.workdir.record import VERSIONS

# {variant: {seed: score}}
Scores = dict[str, dict[int, Scored]]


def write_results(plan: Plan, problem_of: Callable[[Cell], str | None]) -> list[Cell]:
    """Write the results of a study: numbers, a table and a plot.

    Args:
      plan: the study.
      problem_of: returns why a cell has no scores.

    Returns:
      The cells without scores.
    """
    holes = {
        cell: problem_of(cell) or "it wasn't run" for cell in plan.cells if not cell.done()
    }  # fmt: skip
    content = collect(plan, holes)
    path = plan.request.out / f"{plan.request.study}.json"
    write_json(path, content)
    table = as_markdown(content)
    write_text(path.with_suffix(".md"), table)
    save_plot(path.with_suffix(".png"), content)
    print(table.partition("## Commands")[0].strip())
    say(f"wrote {path.name}, {path.stem}.md and {path.stem}.png to {plan.request.out}")
    return list(holes)


def collect(plan: Plan, holes: Mapping[Cell, str]) -> dict[str, Any]:
    """Return the content of STUDY.json; the README of this folder explains it."""
    found = {measure.name: _read_scores(plan, measure) for measure in measures_of(plan.suites)}
    scores = {name: of_cells for name, of_cells in found.items() if any(of_cells.values())}
    measures = [measure for measure in measures_of(plan.suites) if measure.name in scores]
    machine = describe_machine()
    request = plan.request
    return {
        "study": request.study,
        "what": STUDIES[request.study].summary,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "config": request.config.argument,
        "fields": dict(request.config.fields),
        "seeds": list(range(request.seeds)),
        "reference": plan.study.reference,
        "measures": {m.name: _describe_measure(m) for m in measures},
        "variants": {
            variant.name: {
                "what": variant.what,
                "fields": dict(variant.fields),
                "config_variants": variant.config_variants,
                "flags": dict(variant.flags),
                **dataclasses.asdict(cost_of(plan.configs[variant.name], variant.flags)),
                "minutes": _minutes(plan, variant.name),
                "run_of": variant.run_of or variant.name,
                "latent_steps": _latent_steps(plan, variant, found),
                "scores": {
                    name: {str(seed): one.score for seed, one in found[variant.name].items()}
                    for name, found in scores.items()
                },
                "commands": plan.cell(variant.name, 0).commands(),
            }
            for variant in plan.study.variants
        },
        "differences": {name: _differences(plan, found) for name, found in scores.items()},
        "left_out": dict(plan.study.left_out),
        "holes": [
            {"variant": cell.variant, "seed": cell.seed, "problem": problem,
             "commands": cell.commands()}
            for cell, problem in holes.items()
        ],
        "commands": {str(cell): cell.commands() for cell in plan.cells},
        "versions": machine["versions"],
        "commit": machine.get("commit"),
        "changed_since_commit": machine.get("changed"),
        "devices": _devices(plan),
    }  # fmt: skip


def _describe_measure(measure: Measure) -> dict[str, Any]:
    fields = ("suite", "title", "higher_is_better", "factor")
    return {field: getattr(measure, field) for field in fields}


def _read_scores(plan: Plan, measure: Measure) -> Scores:
    found: Scores = {variant.name: {} for variant in plan.study.variants}
    for cell in plan.cells:
        folder = cell.scores.get(measure.suite)
        if folder and cell.trained() and cell.evaluated(measure.suite):
            try:
                scored = measure.read(folder)
            except (KeyError, TypeError, ValueError) as error:
                raise UserError(
                    f"{folder}: isn't a complete result of suite {measure.suite}: delete the "
                    f"folder and run the same command again"
                ) from error
            if scored is not None:
                found[cell.variant][cell.seed] = scored
    return found


def _differences(plan: Plan, scores: Scores) -> list[dict[str, Any]]:
    names = [variant.name for variant in plan.study.variants]
    found = []
    for variant, than in pairs_of(plan.request.study, plan.study.reference, names):
        seeds = sorted(scores[variant].keys() & scores[than].keys())
        both = [[scores[name][seed] for seed in seeds] for name in (variant, than)]
        if not seeds or len({one.identity for row in both for one in row}) > 1:
            continue
        difference = paired_difference(*_paired(both))
        found.append(
            {
                "variant": variant,
                "than": than,
                **dataclasses.asdict(difference),
                "interval": difference.interval,
                "half_width": difference.half_width,
                "paired_seeds": seeds,
            }
        )
    return found


def _paired(both: list[list[Scored]]) -> list[np.ndarray]:
    """Return two arrays: of the examples if all cells have as many, or else of the scores."""
    sizes = {None if one.examples is None else len(one.examples) for row in both for one in row}
    if len(sizes) == 1 and None not in sizes:
        return [np.stack([one.examples for one in row if one.examples is not None]) for row in both]
    return [np.array([one.score for one in row]) for row in both]


def _latent_steps(plan: Plan, variant: Variant, found: Mapping[str, Scores]) -> float:
    """Return the mean latent steps of a token: as a suite counted them, or else T of sampling."""
    cells = [scored for scores in found.values() for scored in scores[variant.name].values()]
    counted = [scored.latent_steps for scored in cells if scored.latent_steps is not None]
    if counted:
        return float(np.mean(counted))
    thinking = plan.configs[variant.name].model.thinking
    steps = variant.flags.get("latent_steps", thinking.latent_steps)
    return float(steps) if thinking.layers else 0.0


def _minutes(plan: Plan, variant: str) -> dict[str, float]:
    """Return the mean minutes of each command over the seeds that have finished it."""
    found: dict[str, list[float]] = {}
    for cell in plan.cells:
        if cell.variant == variant and cell.done():
            for name, seconds in read_record(cell.folder).get("seconds", {}).items():
                found.setdefault(name, []).append(seconds / 60)
    return {name: float(np.mean(minutes)) for name, minutes in found.items()}


def _devices(plan: Plan) -> list[str]:
    """Return the devices that trained the runs, such as "4 × TPU v5 lite"."""
    found = set()
    for cell in plan.cells:
        path = epath.Path(cell.run) / VERSIONS
        if path.exists():
            versions = read_json(path)
            found.add(f"{versions.get('devices', 1)} × {versions.get('device', 'unknown')}")
    return sorted(found)

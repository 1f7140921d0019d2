"""Sweep guidance scales and latent steps, and score the base model with the same seeds.

Compare models only at equal guidance scale: a better-tuned guidance scale also improves the base.
A cell of the sweep is one model (the base, or thinking with T latent steps) at one guidance scale.
"""

import csv
import dataclasses
import io
import itertools
from collections.abc import Sequence
from typing import Any

import jax
from etils import epath

from tp_jax.evals.adm.generator_scorer import load_scorer
from tp_jax.evals.adm.scores import Scores
from tp_jax.files.atomic import write_bytes, write_json, write_text
from tp_jax.files.folders import can_resume, make_folder
from tp_jax.files.jsonl import read_json
from tp_jax.messages.errors import UserError
from tp_jax.messages.progress import say
from tp_jax.parallel.processes import broadcast_from_first
from tp_jax.sampling.description import changed_field, weights_identity
from tp_jax.sampling.loaded import Loaded, load, without_thinking
from tp_jax.sampling.request import (
    check_no_frame,
    make_generator,
    matmul_precision,
    picture_size,
    sampler_fields,
    say_untrained_latent_steps,
)

# Records the settings that all cells of a folder share.
DESCRIPTION = "description.json"
# Fields of the JSON file of a cell that the table needs; scores may be null.
CELL = {"series": str, "guidance_scale": (int, float), "count": int}
COLUMNS = ("fid", "sfid", "inception_score", "precision", "recall")


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Settings of a sweep; the fields are flags of `tp_jax.evaluate`.

    Attributes:
      workdir: training run to score.
      out: folder for the cells, the table and the plot.
      reference: file or folder that the samples are compared with.
      inception: folder of converted Inception weights.
      guidance_scales, latent_steps: the workdir is sampled at every pair of these; the base is
        sampled at every guidance scale.
      num: samples per cell; all cells start from the same noise.
      protocol: key of `PROTOCOLS`.
      checkpoint: train_step of the checkpoint; None is the newest.
      base: base checkpoint or workdir to compare with; None is the one the workdir started from.
      seed, batch_size, sampler_changes, dtype, matmul_precision, autoencoder, allow_unchecked:
        as in `sampling.request.Request`.
    """

    workdir: epath.Path
    out: epath.Path
    reference: epath.Path
    inception: epath.Path
    guidance_scales: tuple[float, ...]
    latent_steps: tuple[int, ...]
    num: int = 50_000
    seed: int = 0
    batch_size: int = 64
    protocol: str = "adm"
    checkpoint: int | None = None
    base: str | None = None
    sampler_changes: dict[str, Any] = dataclasses.field(default_factory=dict)
    dtype: str | None = None
    matmul_precision: str | None = None
    autoencoder: str | None = None
    allow_unchecked: bool = False


def run_sweep(sweep: Sweep) -> None:
    """Score all cells that have no result yet; write `table.csv`, `sweep.json` and `sweep.png`.

    Raises:
      UserError: a setting or an input file is invalid, or `out` contains a different sweep.
    """
    if sweep.num < 2:
        raise UserError(f"--num={sweep.num}: must be 2 or more")
    if not sweep.guidance_scales or not sweep.latent_steps:
        raise UserError("--guidance_scales or --latent_steps is empty: give at least one of each")
    can_resume(sweep.out, sweep.out / DESCRIPTION, f"--out={sweep.out}", "a sweep")
    loaded = load(
        sweep.workdir,
        sweep.checkpoint,
        dtype=sweep.dtype,
        autoencoder=sweep.autoencoder,
        allow_unchecked=sweep.allow_unchecked,
    )
    if loaded.built.model.condition_kind == "text":
        raise UserError(
            f"--workdir={sweep.workdir}: --sweep needs a class-conditional model, but this "
            f"{loaded.config.model.kind} model takes text: use --suite=geneval, dpg or shapes"
        )
    check_no_frame(loaded)
    base, base_name = without_thinking(loaded, sweep.base, allow_unchecked=sweep.allow_unchecked)
    say(f"base: {base_name}")
    say_untrained_latent_steps(loaded, sweep.latent_steps)
    generators = {}
    for scale in sweep.guidance_scales:
        changes = sweep.sampler_changes | {"guidance_scale": scale}
        generators["base", scale] = (base, changes, None)
        for steps in sweep.latent_steps:
            generators[f"T={steps}", scale] = (loaded, changes, steps)
    generators = {
        name: (model, make_generator(model, changes, sweep.batch_size, steps))
        for name, (model, changes, steps) in generators.items()
    }
    scorer = load_scorer(
        str(sweep.reference),
        str(sweep.inception),
        sweep.protocol,
        sweep.batch_size,
        picture_size(loaded),
    )
    _open_folder(sweep, loaded, base_name, scorer.extractor.identity)

    cells = []
    for number, ((series, scale), (model, generator)) in enumerate(generators.items(), 1):
        path = sweep.out / "cells" / f"{series.replace('=', '')}_guidance{scale:g}.json"
        # Only the first process reads and writes cells, so it decides for all whether to sample.
        if not broadcast_from_first(path.exists()):
            say(f"cell {number} of {len(generators)}: {series}, guidance {scale:g}")
            with matmul_precision(sweep.matmul_precision):
                scores = scorer.score(
                    generator, model.params, sweep.num, model.built.model.classes, sweep.seed
                )
            _write_cell(path, series, scale, scores)
        if jax.process_index() == 0:
            cells.append(read_json(path, CELL, remedy="delete it, and run the same command again"))
    if jax.process_index() == 0:
        write_json(sweep.out / "sweep.json", {"cells": cells})
        write_text(sweep.out / "table.csv", as_csv(cells))
        plot(cells, sweep.out / "sweep.png")
        print(as_table(cells))
    files = "sweep.png, table.csv, sweep.json"
    say(f"{len(generators)} cells of {sweep.num} samples: {sweep.out}/{files}")


def _open_folder(sweep: Sweep, loaded: Loaded, base: str, inception: str) -> None:
    """Make the output folder, or check that its cells come from the same settings."""
    description = {
        "workdir": str(sweep.workdir.absolute()),
        "checkpoint": loaded.train_step,
        "weights": weights_identity(sweep.workdir, loaded.train_step),
        "base": base,
        "num": sweep.num,
        "seed": sweep.seed,
        "protocol": sweep.protocol,
        "sampler": sampler_fields(loaded, sweep.sampler_changes),
        "dtype": loaded.built.model.dtype,
        "matmul_precision": sweep.matmul_precision,
        "reference": sweep.reference.name,
        "inception": inception,
        "autoencoder": loaded.codec.space.identity if loaded.codec else None,
    }
    path = sweep.out / DESCRIPTION
    changed = changed_field(read_json(path), description) if path.exists() else None
    if changed:
        raise UserError(
            f"{sweep.out} contains cells of a different sweep: {changed.name} was {changed.old}, "
            f"now {changed.new}: choose another --out"
        )
    if jax.process_index() == 0:
        make_folder(sweep.out / "cells", f"--out={sweep.out}")
        write_json(path, description)


def _write_cell(path: epath.Path, series: str, scale: float, scores: Scores) -> None:
    if jax.process_index() == 0:
        fields = {"series": series, "guidance_scale": scale, **dataclasses.asdict(scores)}
        write_json(path, fields)


def as_csv(cells: Sequence[dict[str, Any]]) -> str:
    """Return a CSV table with one row per cell."""
    file = io.StringIO()
    names = ["series", "guidance_scale", *COLUMNS, "count"]
    writer = csv.DictWriter(file, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(cells)
    return file.getvalue()


def as_table(cells: Sequence[dict[str, Any]]) -> str:
    """Return a table for the terminal: per guidance scale the base, then the others with ΔFID."""
    lines = [f"{'guidance':>8}  {'':6}" + "".join(f"{name:>16}" for name in COLUMNS) + "     ΔFID"]
    for scale, group in itertools.groupby(cells, key=lambda cell: cell["guidance_scale"]):
        group = list(group)
        for cell in group:
            values = "".join(
                f"{'-' if cell[name] is None else format(cell[name], '.4f'):>16}"
                for name in COLUMNS
            )
            delta = cell["fid"] - group[0]["fid"]
            difference = "" if cell is group[0] else f"{delta:+9.3f}"
            lines.append(f"{scale:8g}  {cell['series']:6}{values}{difference}")
    return "\n".join(lines)


def plot(cells: Sequence[dict[str, Any]], path: epath.Path) -> None:
    """Plot FID over guidance scale and FID over Inception Score, one line per series."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    by_scale, by_score = figure.subplots(1, 2)
    names = dict.fromkeys(cell["series"] for cell in cells)
    for name in names:
        line = [cell for cell in cells if cell["series"] == name]
        line.sort(key=lambda cell: cell["guidance_scale"])
        style = dict(marker="o", label=name)
        style |= dict(color="black", linestyle="--") if name == "base" else {}
        fid = [cell["fid"] for cell in line]
        by_scale.plot([cell["guidance_scale"] for cell in line], fid, **style)
        by_score.plot([cell["inception_score"] for cell in line], fid, **style)
    by_scale.set(xlabel="guidance scale", ylabel="FID", title="at matched guidance")
    by_score.set(xlabel="Inception Score", ylabel="FID", title="at matched Inception Score")
    for axes in (by_scale, by_score):
        axes.grid(alpha=0.3)
    by_scale.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_bytes(path, buffer.getvalue())

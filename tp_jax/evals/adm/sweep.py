"""Scores over guidance scales and latent steps with the same seeds, the base model beside them.

So a gain is seen at matched guidance or not at all: a base with better guidance is no gain.
"""

import csv
import dataclasses
import io
import itertools
import json
from collections.abc import Sequence
from typing import Any

import jax
from etils import epath

from tp_jax.evals.adm.scorer import load_scorer
from tp_jax.evals.adm.scores import Scores
from tp_jax.files.atomic import write_json
from tp_jax.files.differences import first_difference
from tp_jax.files.folders import can_resume, make_folder
from tp_jax.files.jsonl import read_json
from tp_jax.messages.errors import UserError
from tp_jax.messages.progress import say
from tp_jax.parallel.processes import broadcast_from_first
from tp_jax.sampling.loaded import Loaded, load, without_thinking
from tp_jax.sampling.request import (
    check_no_frame,
    make_generator,
    matmul_precision,
    picture_size,
    sampler_fields,
)

# Says what the cells of a folder are of.
DESCRIPTION = "description.json"
COLUMNS = ("fid", "sfid", "inception_score", "precision", "recall")


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What to sweep; flags of `tp_jax.evaluate`.

    Attributes:
      out: folder for the cells, the table and the plot.
      guidance_scales, latent_steps: whose product is drawn; the base is drawn at each scale.
      num: samples of each cell, all from the same noise.
      base: base checkpoint or workdir to put beside; None is what the workdir was trained from.
      sampler_changes, dtype, matmul_precision: as of `drawing.Drawing`.
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


def run_sweep(sweep: Sweep) -> None:
    """Scores every cell that isn't there yet, and writes `table.csv`, `sweep.json`, `sweep.png`.

    Raises:
      UserError: anything that was asked for can't be had, or the folder is of another sweep.
    """
    if sweep.num < 2:
        raise UserError(f"--num={sweep.num}: 2 or more make a score")
    if not sweep.guidance_scales or not sweep.latent_steps:
        raise UserError("--guidance_scales and --latent_steps: give one or more of each")
    can_resume(sweep.out, sweep.out / DESCRIPTION, f"--out={sweep.out}", "a sweep")
    loaded = load(sweep.workdir, sweep.checkpoint, dtype=sweep.dtype, autoencoder=sweep.autoencoder)
    if loaded.built.model.takes == "text":
        raise UserError(
            f"--workdir={sweep.workdir}: a {loaded.config.model.kind} model takes text, and sweeps "
            f"draw classes; score prompts with --suite=geneval, dpg or shapes"
        )
    check_no_frame(loaded, sweep.workdir)
    base, base_name = without_thinking(loaded, sweep.base)
    say(f"base: {base_name}")
    generators = {}
    for scale in sweep.guidance_scales:
        changes = sweep.sampler_changes | {"guidance_scale": scale}
        generators["base", scale] = (base, changes, None)
        for steps in sweep.latent_steps:
            generators[f"T={steps}", scale] = (loaded, changes, steps)
    generators = {
        name: (of, make_generator(of, changes, sweep.batch_size, steps))
        for name, (of, changes, steps) in generators.items()
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
    for number, ((series, scale), (of, generator)) in enumerate(generators.items(), 1):
        path = sweep.out / "cells" / f"{series.replace('=', '')}_guidance{scale:g}.json"
        # The first process alone reads and writes; the others need only do as it does.
        if not broadcast_from_first(path.exists()):
            say(f"cell {number} of {len(generators)}: {series}, guidance {scale:g}")
            with matmul_precision(sweep.matmul_precision):
                scores = scorer.score(
                    generator, of.params, sweep.num, of.built.model.classes, sweep.seed
                )
            _write_cell(path, series, scale, scores)
        if jax.process_index() == 0:
            cells.append(json.loads(path.read_text()))
    if jax.process_index() == 0:
        write_json(sweep.out / "sweep.json", {"cells": cells})
        (sweep.out / "table.csv").write_text(as_csv(cells))
        plot(cells, sweep.out / "sweep.png")
        print(as_table(cells))
    files = "sweep.png, table.csv, sweep.json"
    say(f"{len(generators)} cells of {sweep.num} samples: {sweep.out}/{files}")


def _open_folder(sweep: Sweep, loaded: Loaded, base: str, inception: str) -> None:
    """Cells of another description don't go beside these."""
    description = {
        "workdir": str(sweep.workdir.absolute()),
        "checkpoint": loaded.train_step,
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
    changed = first_difference(read_json(path), description) if path.exists() else None
    if changed:
        raise UserError(
            f"{sweep.out} holds cells of another sweep: {changed.name} was {changed.old}, now "
            f"{changed.new}; name another --out"
        )
    if jax.process_index() == 0:
        make_folder(sweep.out / "cells", f"--out={sweep.out}")
        write_json(path, description)


def _write_cell(path: epath.Path, series: str, scale: float, scores: Scores) -> None:
    if jax.process_index() == 0:
        fields = {"series": series, "guidance_scale": scale, **dataclasses.asdict(scores)}
        write_json(path, fields)


def as_csv(cells: Sequence[dict[str, Any]]) -> str:
    """One row a cell."""
    file = io.StringIO()
    names = ["series", "guidance_scale", *COLUMNS, "count"]
    writer = csv.DictWriter(file, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(cells)
    return file.getvalue()


def as_table(cells: Sequence[dict[str, Any]]) -> str:
    """For the terminal: at each guidance scale the base first, and the difference to it in FID."""
    lines = [f"{'guidance':>8}  {'':6}" + "".join(f"{name:>16}" for name in COLUMNS) + "     ΔFID"]
    for scale, group in itertools.groupby(cells, key=lambda cell: cell["guidance_scale"]):
        group = list(group)
        for cell in group:
            values = "".join(
                f"{'-' if cell[name] is None else format(cell[name], '.4f'):>16}"
                for name in COLUMNS
            )
            gain = cell["fid"] - group[0]["fid"]
            difference = "" if cell is group[0] else f"{gain:+9.3f}"
            lines.append(f"{scale:8g}  {cell['series']:6}{values}{difference}")
    return "\n".join(lines)


def plot(cells: Sequence[dict[str, Any]], path: epath.Path) -> None:
    """FID by guidance scale, and FID by Inception Score; a line a series, the base dashed."""
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
    with path.open("wb") as file:
        figure.savefig(file, format="png", dpi=120)

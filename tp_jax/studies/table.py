"""The results of a study as Markdown."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from tp_jax.studies.claims import config_of, find_difference


def as_markdown(results: Mapping[str, Any]) -> str:
    """Return tables of scores, differences and cost, and the commands of all cells.

    Args:
      results: the content of STUDY.json.
    """
    seeds = len(results["seeds"])
    version = results["commit"] or f"tp_jax {results['versions']['tp_jax']}"
    lines = [
        f"# {results['study']}: {results['what']}",
        "",
        f"{config_of(results)}, {seeds} seed{'s' * (seeds > 1)}, {version}, {results['date']}. "
        f"Differences are from `{results['reference']}`, paired by seed and, where examples were "
        f"counted, by example. Half of the wider interval is the difference that could have been "
        f"seen.",
    ]
    for name in results["measures"]:
        lines += ["", *_scores_table(results, name)]
    lines += ["", *_cost_table(results)]
    if results["left_out"]:
        lines += ["", "Left out:", ""]
        lines += [f"- `{name}`: {why}" for name, why in results["left_out"].items()]
    if results["holes"]:
        lines += ["", "## Cells without scores", ""]
        lines += [
            f"- {hole['variant']}, seed {hole['seed']}: {hole['problem']}"
            for hole in results["holes"]
        ]
        lines += ["", "The command of the study runs them again; the commands are below."]
    lines += ["", "## Commands", "", "```bash"]
    for cell, commands in results["commands"].items():
        lines += [f"# {cell}", *commands]
    return "\n".join([*lines, "```", ""])


def _scores_table(results: Mapping[str, Any], measure: str) -> list[str]:
    described, reference = results["measures"][measure], results["reference"]
    better = "higher" if described["higher_is_better"] else "lower"
    lines = [
        f"**{described['title']}** ({better} is better; mean ± standard deviation over seeds)",
        "",
        "| variant | | score | difference | 95 % bootstrap | 95 % t | could have been seen |",
        "|---|---|---|---|---|---|---|",
    ]
    scored = {name: row["scores"].get(measure, {}) for name, row in results["variants"].items()}
    spreads = [np.std(list(s.values()), ddof=1) for s in scored.values() if len(s) > 1]
    factor = described["factor"]
    digits = _digits(factor * min((s for s in spreads if s > 0), default=0.01))
    for name, row in results["variants"].items():
        scores = scored[name]
        cells = [f"`{name}`", row["what"], _score(scores, factor, digits, len(results["seeds"]))]
        found = find_difference(results, measure, name, reference)
        if found:
            cells.append(f"{factor * found['mean']:+.{digits}f}")
            cells += [_interval(found[key], factor, digits) for key in ("bootstrap", "t")]
            half = found["half_width"]
            cells.append("—" if half is None else f"± {factor * half:.{digits}f}")
        else:
            cells += ["reference" if name == reference else "—", "", "", ""]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _digits(spread: float) -> int:
    """Return how many decimals show two digits of a spread."""
    return int(min(max(1 - math.floor(math.log10(spread)), 0), 6)) if spread > 0 else 3


def _score(scores: Mapping[str, float], factor: float, digits: int, seeds: int) -> str:
    values = factor * np.array(list(scores.values()))
    if not len(values):
        return "—"
    spread = f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else ""
    fewer = f" ({len(values)} of {seeds} seeds)" if len(values) < seeds else ""
    return f"{values.mean():.{digits}f}{spread}{fewer}"


def _interval(ends: list[float] | None, factor: float, digits: int) -> str:
    return " … ".join(f"{factor * end:+.{digits}f}" for end in ends) if ends else "—"


def _cost_table(results: Mapping[str, Any]) -> list[str]:
    lines = [
        "**Cost.** FLOPs are analytic. Minutes are of wall time, the mean over seeds.",
        "",
        "| variant | parameters | of which trained | FLOPs of training | FLOPs of a sample "
        "| minutes of training | of evaluation |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in results["variants"].items():
        minutes = dict(row["minutes"])
        trained = minutes.pop("train", None)
        cells = [
            f"`{name}`",
            f"{row['parameters']:,}",
            f"{row['trained_parameters']:,}",
            f"{row['train_flops']:.3g}",
            f"{row['sample_flops']:.3g}",
            "—" if trained is None else f"{trained:.1f}",
            f"{sum(minutes.values()):.1f}" if minutes else "—",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines

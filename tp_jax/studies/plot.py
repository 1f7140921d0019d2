"""A plot of a study: the score of every seed, and paired differences with their intervals.

If a trained run was scored with several numbers of latent steps, the differences are also drawn
against the latent steps.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tp_jax.files.atomic import replacing
from tp_jax.studies.claims import find_difference

BLUE, GREY = "#1F5FA8", "#6B6B6B"
COLOURS = (BLUE, "#C2571A", "#2E7D4F", "#8A3F9E", "#B8860B")
ROW, TOP = 0.34, 1.3  # inches per variant, and for title and axis labels
# A variant this many times as far away as all others together is marked at the edge, so that the
# differences of the others can be seen.
FAR = 5
CURVE = 3.4  # height in inches of a plot against latent steps
WIDTH, DPI = 9.0, 130


def save_plot(path: epath.Path, results: Mapping[str, Any]) -> None:
    """Save the plot: for each measure, scores on the left and differences on the right.

    Below are differences against latent steps, one line per trained run.

    Args:
      path: FILE.png.
      results: the content of STUDY.json. Without any scores, no file is written.
    """
    if not results["measures"]:
        return
    names, measures = list(results["variants"]), list(results["measures"])
    lines = {measure: lines_of_runs(results, measure) for measure in measures}
    curves = [measure for measure in measures if lines[measure]]
    heights = [ROW * len(names) + TOP] * len(measures) + [CURVE] * len(curves)
    figure = Figure(figsize=(WIDTH, sum(heights)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(len(heights), 2, height_ratios=heights)
    for row, measure in enumerate(measures):
        left = figure.add_subplot(grid[row, 0])
        right = figure.add_subplot(grid[row, 1], sharey=left)
        right.tick_params(labelleft=False)
        _draw_scores(left, results, measure)
        _draw_differences(right, results, measure)
        left.set_yticks(range(len(names)), names)
        left.set_ylim(len(names) - 0.5, -0.5)
    for row, measure in enumerate(curves, len(measures)):
        _draw_lines(figure.add_subplot(grid[row, :]), results, measure, lines[measure])
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI)


def _prepare(axes: Axes, label: str) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel(label)
    axes.locator_params(axis="x", nbins=6)


def show_most(axes: Axes, values: Mapping[int, Sequence[float]], centre: float) -> None:
    """Limit the x axis to all rows but one that is far away, and write the mean of that one.

    Args:
      values: {row: what is drawn there}.
      centre: what is far or near, such as 0 for differences.
    """
    reach = {row: float(np.abs(np.subtract(found, centre)).max()) for row, found in values.items()}
    if len(reach) < 3:
        return
    *others, far = sorted(reach, key=reach.__getitem__)
    most = reach[others[-1]]
    if not 0 < FAR * most < reach[far]:
        return
    axes.set_xlim(centre - 1.4 * most, centre + 1.4 * most)
    mean = float(np.mean(values[far]))
    right = mean > centre
    axes.text(
        0.98 if right else 0.02, far, f"{mean:.3g} →" if right else f"← {mean:.3g}", color=BLUE,
        ha="right" if right else "left", va="center", transform=axes.get_yaxis_transform(),
    )  # fmt: skip


def _draw_scores(axes: Axes, results: Mapping[str, Any], measure: str) -> None:
    described = results["measures"][measure]
    better = "higher" if described["higher_is_better"] else "lower"
    _prepare(axes, f"{described['title']} ({better} is better)")
    across = axes.get_yaxis_transform()
    drawn: dict[int, Sequence[float]] = {}
    for place, row in enumerate(results["variants"].values()):
        values = described["factor"] * np.array(list(row["scores"].get(measure, {}).values()))
        if not len(values):
            axes.text(0.02, place, "no scores", va="center", color=GREY, transform=across)
            continue
        axes.plot(values, np.full(len(values), place), "o", color=BLUE, alpha=0.45, markersize=4)
        axes.plot(values.mean(), place, "|", color="black", markersize=14, markeredgewidth=2)
        drawn[place] = values.tolist()
    if drawn:
        show_most(axes, drawn, float(np.median([np.mean(found) for found in drawn.values()])))
    axes.set_title("each seed (points) and mean (bar)", fontsize=10, loc="left")


def _draw_differences(axes: Axes, results: Mapping[str, Any], measure: str) -> None:
    described, reference = results["measures"][measure], results["reference"]
    _prepare(axes, f"difference from {reference}")
    axes.axvline(0, color=GREY, linewidth=1)
    factor, sign = described["factor"], 1 if described["higher_is_better"] else -1
    drawn: dict[int, Sequence[float]] = {}
    for place, name in enumerate(results["variants"]):
        found = find_difference(results, measure, name, reference)
        if name == reference:
            axes.text(0, place, " reference", va="center", color=GREY)
        if found is None:
            continue
        clear, ends = False, found["interval"]
        drawn[place] = [factor * value for value in (found["mean"], *(ends or ()))]
        if ends:
            clear = ends[0] > 0 or ends[1] < 0
            axes.plot([factor * end for end in ends], [place, place], "-", color=BLUE, linewidth=2)
        axes.plot(
            factor * found["mean"], place, "o", color=BLUE, markersize=6,
            markerfacecolor=BLUE if clear else "white",
        )  # fmt: skip
    show_most(axes, drawn, 0.0)
    side = "right" if sign > 0 else "left"
    axes.set_title(
        f"95 % interval; better is {side}; filled if it excludes 0", fontsize=10, loc="left"
    )


# Of one variant: latent steps, difference from the reference, and half the width of its interval.
Point = tuple[float, float, float]


def lines_of_runs(results: Mapping[str, Any], measure: str) -> dict[str, list[Point]]:
    """Return the points of every run, by latent steps; {} if no run has several latent steps."""
    factor, found = results["measures"][measure]["factor"], {}
    for name, row in results["variants"].items():
        difference = find_difference(results, measure, name, results["reference"])
        if name == results["reference"]:
            difference = {"mean": 0.0, "half_width": 0.0}
        if difference and row["scores"].get(measure):
            half = difference["half_width"] or 0.0
            point = row["latent_steps"], factor * difference["mean"], factor * half
            found.setdefault(row["run_of"], []).append(point)
    several = any(len({point[0] for point in points}) > 1 for points in found.values())
    return {run: sorted(points) for run, points in found.items()} if several else {}


def _draw_lines(
    axes: Axes, results: Mapping[str, Any], measure: str, lines: Mapping[str, list[Point]]
) -> None:
    described, reference = results["measures"][measure], results["reference"]
    _prepare(axes, "mean latent steps of a token")
    axes.axhline(0, color=GREY, linewidth=1)
    for place, (run, points) in enumerate(lines.items()):
        steps, means, halves = zip(*points, strict=True)
        axes.errorbar(
            steps, means, halves, marker="o", markersize=5, capsize=3, linewidth=1.5,
            color=COLOURS[place % len(COLOURS)], label=run,
        )  # fmt: skip
    better = "higher" if described["higher_is_better"] else "lower"
    axes.set_ylabel(f"difference from {reference}")
    axes.set_title(
        f"{described['title']} ({better} is better), 95 % interval", fontsize=10, loc="left"
    )
    axes.legend(title="trained run", frameon=False, fontsize=9)

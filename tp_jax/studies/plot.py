"""A plot of a study: the score of every seed, and paired differences with their intervals."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tp_jax.files.atomic import replacing
from tp_jax.studies.claims import find_difference

BLUE, GREY = "#1F5FA8", "#6B6B6B"
ROW, TOP = 0.34, 1.3  # inches per variant, and for title and axis labels
WIDTH, DPI = 9.0, 130


def save_plot(path: epath.Path, results: Mapping[str, Any]) -> None:
    """Save the plot: for each measure, scores on the left and differences on the right.

    Args:
      path: FILE.png.
      results: the content of STUDY.json. Without any scores, no file is written.
    """
    if not results["measures"]:
        return
    names, measures = list(results["variants"]), list(results["measures"])
    height = len(measures) * (ROW * len(names) + TOP)
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(measures), 2, squeeze=False, sharey=True)
    for row, measure in zip(axes, measures, strict=True):
        _draw_scores(row[0], results, measure)
        _draw_differences(row[1], results, measure)
        row[0].set_yticks(range(len(names)), names)
        row[0].set_ylim(len(names) - 0.5, -0.5)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI)


def _prepare(axes: Axes, label: str) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel(label)
    axes.locator_params(axis="x", nbins=6)


def _draw_scores(axes: Axes, results: Mapping[str, Any], measure: str) -> None:
    described = results["measures"][measure]
    better = "higher" if described["higher_is_better"] else "lower"
    _prepare(axes, f"{described['title']} ({better} is better)")
    across = axes.get_yaxis_transform()
    for place, row in enumerate(results["variants"].values()):
        values = described["factor"] * np.array(list(row["scores"].get(measure, {}).values()))
        if not len(values):
            axes.text(0.02, place, "no scores", va="center", color=GREY, transform=across)
            continue
        axes.plot(values, np.full(len(values), place), "o", color=BLUE, alpha=0.45, markersize=4)
        axes.plot(values.mean(), place, "|", color="black", markersize=14, markeredgewidth=2)
    axes.set_title("each seed (points) and mean (bar)", fontsize=10, loc="left")


def _draw_differences(axes: Axes, results: Mapping[str, Any], measure: str) -> None:
    described, reference = results["measures"][measure], results["reference"]
    _prepare(axes, f"difference from {reference}")
    axes.axvline(0, color=GREY, linewidth=1)
    factor, sign = described["factor"], 1 if described["higher_is_better"] else -1
    for place, name in enumerate(results["variants"]):
        found = find_difference(results, measure, name, reference)
        if name == reference:
            axes.text(0, place, " reference", va="center", color=GREY)
        if found is None:
            continue
        clear, ends = False, found["interval"]
        if ends:
            clear = ends[0] > 0 or ends[1] < 0
            axes.plot([factor * end for end in ends], [place, place], "-", color=BLUE, linewidth=2)
        axes.plot(
            factor * found["mean"], place, "o", color=BLUE, markersize=6,
            markerfacecolor=BLUE if clear else "white",
        )  # fmt: skip
    side = "right" if sign > 0 else "left"
    axes.set_title(
        f"95 % interval; better is {side}; filled if it excludes 0", fontsize=10, loc="left"
    )

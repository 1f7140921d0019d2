"""Figures of the experts' outputs, of the tokens' way over the latent steps, and of interventions.

Every function takes an analysis document and returns a PNG, or None if the document lacks the data.
"""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.ticker import PercentFormatter

from tp_jax.analysis import drawing
from tp_jax.analysis.document import Document, parts, similarities
from tp_jax.analysis.routing_figures import (
    MAX_BLOCKS,
    draw_lines,
    latent_step_names,
)
from tp_jax.pictures.tables import picked


def draw_similarity(document: Document) -> bytes | None:
    """Draw the cosine of the experts' ΔQ, ΔK and ΔV on the same tokens, as heat maps."""
    values = similarities(document)
    if not values:
        return None
    figure, axes = drawing.panels(
        len(values), 3, 1.6, extra=0.8, sharex=False, sharey=False
    )  # fmt: skip
    image = None
    for row, found in zip(axes, values.values(), strict=True):
        for one, name in zip(row, "qkv", strict=True):
            if name not in found:
                one.set_axis_off()
                continue
            image = one.imshow(
                found[name], cmap=drawing.DIVERGING, vmin=-1, vmax=1, interpolation="nearest"
            )
            _write_cells(one, found[name])
    if image is None:
        return None
    drawing.add_colour_bar(figure, axes, image, "mean cosine (1: the same direction)")
    rows = [f"block {block}\nexpert" for block in values]
    drawing.name_rows_and_columns(axes, rows, ["ΔQ", "ΔK", "ΔV"])
    for one in axes[-1]:
        one.set_xlabel("expert")
    return drawing.to_png(figure)


def _write_cells(axes: Axes, matrix: np.ndarray) -> None:
    """Write the numbers of the experts, and the values if there are at most four experts."""
    experts = len(matrix)
    ticks = picked(experts, 5)
    axes.set_xticks(ticks, map(str, ticks))
    axes.set_yticks(ticks, map(str, ticks))
    if experts > 4:
        return
    for (i, j), value in np.ndenumerate(matrix):
        colour = "white" if abs(value) > 0.6 else "black"
        axes.text(j, i, f"{value:z.2f}", ha="center", va="center", color=colour, fontsize=9)


def draw_moves(document: Document) -> bytes | None:
    """Draw how far tokens move at each latent step, |ã^t − ã^{t−1}| / |ã^{t−1}|, over timesteps."""
    values = parts(document, "moves")
    if not values:
        return None
    names = latent_step_names(next(iter(values.values())).shape[1])
    return draw_lines(document, values, names, "relative length of the move", limits=(0, None))


def draw_ratios(document: Document) -> bytes | None:
    """Draw the ratio of each move to the one before: below 1, the tokens converge."""
    values = parts(document, "ratios")
    if not values:
        return None
    count = next(iter(values.values())).shape[1]
    names = [f"move {t + 1} : move {t}" for t in range(1, count + 1)]
    return draw_lines(
        document, values, names, "ratio of successive moves", limits=(0, None),
        reference=(1.0, "no change"),
    )  # fmt: skip


def draw_together(document: Document) -> bytes | None:
    """Draw the mean cosine between the tokens' displacements over the latent steps."""
    values = {block: found[:, None] for block, found in parts(document, "together").items()}
    if not values:
        return None
    return draw_lines(
        document,
        values,
        [],
        "mean cosine of displacements",
        reference=(0.0, "unrelated directions"),
    )


def draw_latent_steps(document: Document) -> bytes | None:
    """Draw the mean number of latent steps of a token over the timesteps, a panel per block."""
    values = parts(document, "latent_steps")
    if not values:
        return None
    latent_steps = document["run"]["latent_steps"]
    used = {block: found[:, None] for block, found in values.items()}
    return draw_lines(
        document, used, [], "mean latent steps", limits=(0, 1.06 * latent_steps),
        reference=(latent_steps, f"no token halts: {latent_steps}"),
    )  # fmt: skip


def draw_latent_steps_by_place(document: Document) -> bytes | None:
    """Draw where in the picture tokens take more latent steps, a map for each of six blocks."""
    values = parts(document, "latent_steps_by_place")
    if not values:
        return None
    shown = [list(values)[i] for i in picked(len(values), MAX_BLOCKS)]
    rows, columns = values[shown[0]].shape
    height = min(2.4, 0.44 * drawing.WIDTH * rows / columns)
    figure, axes = drawing.block_panels(shown, height + 0.3)
    norm = Normalize(1, max(2, document["run"]["latent_steps"]))
    for block, one in axes.items():
        one.imshow(values[block], norm=norm, interpolation="nearest")
        one.set(xticks=[], yticks=[])
    every = np.array([*axes.values()])
    drawing.add_colour_bar(figure, every, ScalarMappable(norm), "mean latent steps")
    return drawing.to_png(figure)


def draw_trajectories(document: Document) -> bytes | None:
    """Draw the tokens' ways over the latent steps in the plane of two principal components.

    A line runs from ã^0 to ã^{T−1}; each piece has the colour of the expert that made the move, and
    an arrow head ends the last piece. With one latent step there are dots, in the colour of the
    expert. Moves that would be too short to see are enlarged, and the panel says how many times.
    There is a row for each block, at most six, and a column for each of at most two timesteps: the
    noisiest and the last.
    """
    blocks = {
        name: values["trajectories"]
        for name, values in (document.get("blocks") or {}).items()
        if values.get("trajectories")
    }
    if not blocks:
        return None
    shown = [list(blocks)[i] for i in picked(len(blocks), MAX_BLOCKS)]
    # One block has room for more timesteps: a grid of two columns.
    limit = 4 if len(shown) == 1 else 2
    drawn = [
        (block, blocks[block][i]) for block in shown for i in picked(len(blocks[block]), limit)
    ]
    columns = min(2, len(drawn))
    rows = -(-len(drawn) // columns)
    figure, axes = drawing.panels(
        rows, columns, 2.1 if columns > 1 else 3.2, extra=0.9, sharex=False, sharey=False
    )
    experts = document["run"]["experts"]
    # Tokens that have halted have the expert M, and don't move.
    colours = np.array([*drawing.hex_colours(experts), drawing.GREY])
    for one, (block, trajectory) in zip(axes.flat, drawn, strict=False):
        zoom = _draw_ways(one, trajectory, colours)
        title = f"block {block}, timestep {trajectory['timestep']:.4g}"
        drawing.write_title(one, title + (f"\nmoves enlarged {zoom} times" if zoom > 1 else ""))
    for unused in axes.flat[len(drawn) :]:
        unused.set_axis_off()
    drawing.add_expert_legend(figure, axes, experts)
    return drawing.to_png(figure)


def _draw_ways(axes: Axes, trajectory: dict[str, Any], colours: np.ndarray) -> int:
    """Draw the trajectories of one block and timestep; return how many times moves are enlarged."""
    points = np.array(trajectory["points"], np.float64)  # [K, T, 2]
    expert = np.array(trajectory["expert"])
    zoom = _zoom(points)
    points = points[:, :1] + zoom * (points - points[:, :1])
    first, second = trajectory["explained"]
    axes.set_xlabel(f"PC 1 ({first:.0%} of variance)", fontsize=9)
    axes.set_ylabel(f"PC 2 ({second:.0%})", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.locator_params(nbins=4)
    if points.shape[1] == 1:
        axes.scatter(*points[:, 0].T, c=colours[expert[:, 0]], s=10)
        return zoom
    starts, ends = points[:, :-1], points[:, 1:]
    if points.shape[1] > 2:
        pieces = np.stack([starts[:, :-1], ends[:, :-1]], 2).reshape(-1, 2, 2)
        axes.add_collection(
            LineCollection(
                [*pieces], colors=colours[expert[:, :-2].ravel()], linewidths=1, alpha=0.8
            )
        )
    axes.quiver(
        *starts[:, -1].T, *(ends - starts)[:, -1].T, color=colours[expert[:, points.shape[1] - 2]],
        angles="xy", scale_units="xy", scale=1, width=0.006, alpha=0.8,
    )  # fmt: skip
    axes.scatter(*starts[:, 0].T, color=drawing.GREY, s=4, zorder=0)
    # The limits that quiver sets ignore the ends of its arrows.
    axes.update_datalim(points.reshape(-1, 2))
    axes.autoscale_view()
    return zoom


def _zoom(points: np.ndarray) -> int:
    """Return 1, 2, 5, 10, 20, …: by how much moves are enlarged to be a tenth of the picture.

    Args:
      points: [K, T, 2].
    """
    length = np.median(np.linalg.norm(points[:, -1] - points[:, 0], axis=-1))
    extent = np.ptp(points.reshape(-1, 2), axis=0).max()
    if not 0 < length < 0.1 * extent:
        return 1
    wanted = min(0.1 * extent / length, 1e6)
    power = 10 ** int(np.log10(wanted))
    return power * max(factor for factor in (1, 2, 5) if factor * power <= wanted)


def draw_interventions(document: Document) -> bytes | None:
    """Draw how far each intervention changes the pictures, and its score if the task has one."""
    found = document.get("interventions") or []
    found = [one for one in found if one.get("difference") is not None]
    if not found:
        return None
    scored = any(one.get("score") is not None for one in found)
    figure, axes = drawing.panels(
        1, 2 if scored else 1, 0.5 + 0.28 * len(found), extra=0.6, sharex=False
    )
    first = axes[0, 0]
    rows = range(len(found))
    names = [drawing.short(one["name"], 24) for one in found]
    first.barh(rows, [one["difference"] for one in found], color=drawing.EXPERT_COLOURS[0])
    first.set_yticks(rows, names, parse_math=False)
    first.set_ylim(len(found) - 0.4, -0.6)
    first.set_xlabel("mean difference\n(grey levels of 255)")
    if scored:
        second = axes[0, 1]
        scores = [(i, one["score"]) for i, one in enumerate(found) if one.get("score") is not None]
        second.plot([s for _, s in scores], [i for i, _ in scores], "o", color="#4D4D4D")
        name = next(one["score_name"] for one in found if one.get("score") is not None)
        second.set_xlabel(drawing.short(str(name or "score"), 24), parse_math=False)
        second.grid(axis="both", alpha=0.3)
        if all(0 <= score <= 1 for _, score in scores):
            second.set_xlim(-0.03, 1.03)
            second.xaxis.set_major_formatter(PercentFormatter(1.0))
        second.locator_params(axis="x", nbins=3)
    first.locator_params(axis="x", nbins=4)
    return drawing.to_png(figure)

"""Figures of the gate's choices: entropy, use of the experts, and what the choice depends on.

Every function takes an analysis document and returns a PNG, or None if the document lacks the data.
"""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import CenteredNorm
from matplotlib.lines import Line2D

from tp_jax.analysis import drawing
from tp_jax.analysis.document import (
    Document,
    group_mean,
    group_order,
    information,
    kept_by_chance,
    parts,
    variable_name,
)
from tp_jax.pictures.tables import picked

# Blocks in figures that need many panels for each.
MAX_BLOCKS = 6
# Differences of use that are shown with the strongest colour at least, in percentage points, so
# that noise doesn't look like a pattern.
SMALLEST_RANGE = 2.0
DEVIATION = "share of tokens minus the mean (percentage points)"


def draw_lines(
    document: Document,
    values: dict[str, np.ndarray],
    names: Sequence[str],
    label: str,
    *,
    dashed: dict[str, np.ndarray] | None = None,
    dashed_name: str = "",
    limits: tuple[float, float | None] | None = None,
    reference: tuple[float, str] | None = None,
) -> bytes:
    """Draw lines over the timesteps, in a panel for each block.

    Args:
      document: the analysis.
      values: float [S, lines] of each block.
      names: the name of each line; without names there is no legend.
      label: of the y axis, with its unit.
      dashed: float [S, lines] of each block, drawn dashed in the colours of `values`.
      dashed_name: what the dashed lines are.
      limits: of the y axis.
      reference: a value that is marked by a dotted line, and its name.
    """
    timesteps = document["timesteps"]
    figure, axes = drawing.block_panels(list(values), 1.6 if len(values) > 2 else 2.4)
    count = next(iter(values.values())).shape[1]
    colours = drawing.latent_step_colours(count)
    marker = "o" if len(timesteps) <= 12 else ""
    for block, one in axes.items():
        for i, colour in enumerate(colours):
            line = one.plot(timesteps, values[block][:, i], color=colour, linewidth=1.8)[0]
            line.set(marker=marker, markersize=4)
            if dashed and block in dashed:
                one.plot(timesteps, dashed[block][:, i], color=colour, linestyle="--")
        if reference:
            one.axhline(reference[0], color=drawing.GREY, linestyle=":")
        drawing.timestep_axis(one, timesteps)
        if limits:
            one.set_ylim(*limits)
    handles = [Line2D([], [], color=colour, linewidth=1.8) for colour in colours] if names else []
    labels = list(names)
    if dashed:
        handles.append(Line2D([], [], color=drawing.GREY, linestyle="--"))
        labels.append(dashed_name)
    if reference:
        handles.append(Line2D([], [], color=drawing.GREY, linestyle=":"))
        labels.append(reference[1])
    drawing.add_legend(figure, handles, labels)
    figure.supxlabel(drawing.TIMESTEP_LABEL, fontsize=10)
    figure.supylabel(label, fontsize=10)
    return drawing.to_png(figure)


def latent_step_names(count: int, first: int = 1) -> list[str]:
    """Return "latent step 1", "latent step 2", …"""
    return [f"latent step {t}" for t in range(first, first + count)]


def transition_names(count: int) -> list[str]:
    """Return "1 → 2", "2 → 3", …, the transitions between latent steps."""
    return [f"latent step {t} → {t + 1}" for t in range(1, count + 1)]


def draw_entropy(document: Document) -> bytes | None:
    """Draw the gate's mean entropy over timesteps: a line per latent step, a panel per block."""
    values = parts(document, "entropy")
    if not values:
        return None
    experts = document["run"]["experts"]
    reference = (math.log(experts), f"even odds: ln {experts}") if experts > 1 else None
    count = next(iter(values.values())).shape[1]
    highest = max(math.log(experts), *(np.nanmax(v) for v in values.values())) or 1.0
    return draw_lines(
        document, values, latent_step_names(count), "entropy (nats)", limits=(0, 1.08 * highest),
        reference=reference,
    )  # fmt: skip


def draw_kept(document: Document) -> bytes | None:
    """Draw the share of tokens that keep their expert, beside the share expected by chance."""
    values = parts(document, "kept")
    if not values:
        return None
    chance = {block: kept_by_chance(document, block) for block in values}
    count = next(iter(values.values())).shape[1]
    return draw_lines(
        document, values, transition_names(count), "share of tokens", limits=(0, 1.04),
        dashed={block: share for block, share in chance.items() if share is not None},
        dashed_name="by chance",
    )  # fmt: skip


def draw_use(document: Document) -> bytes | None:
    """Draw the experts' shares over timesteps as stacked areas.

    There is a row for each block and a column for each latent step. Of more than three latent
    steps, the first, a middle one and the last are shown; with many blocks, the first and the last.
    """
    values = parts(document, "use")
    if not values:
        return None
    timesteps = document["timesteps"]
    _, latent_steps, experts = next(iter(values.values())).shape
    many = len(values) > 4
    columns, colours = picked(latent_steps, 2 if many else 3), drawing.hex_colours(experts)
    figure, axes = drawing.panels(len(values), len(columns), 1.1 if many else 1.6, extra=1.1)
    x = timesteps
    for row, use in zip(axes, values.values(), strict=True):
        if len(timesteps) == 1:  # An area needs two points.
            x, use = [timesteps[0] - 0.5, timesteps[0] + 0.5], use.repeat(2, 0)
        for one, t in zip(row, columns, strict=True):
            areas = one.stackplot(x, np.nan_to_num(use[:, t].T), colors=colours, linewidth=0)
            for area in areas:  # The axes alone determine the layout, which saves much time.
                area.set_in_layout(False)
            drawing.timestep_axis(one, x, ticks=2)
            one.set(ylim=(0, 1), yticks=[0, 0.5, 1])
    rows = [f"block {block}" for block in values]
    drawing.name_rows_and_columns(axes, rows, [f"latent step {t + 1}" for t in columns])
    drawing.add_expert_legend(figure, axes, experts)
    figure.supxlabel(drawing.TIMESTEP_LABEL, fontsize=10)
    figure.supylabel("share of tokens", fontsize=10)
    return drawing.to_png(figure)


def draw_use_by_group(document: Document) -> bytes | None:
    """Draw how far each group's use of the experts is from the mean over groups, as heat maps.

    A column is an expert; with more than 16 pairs of latent step and expert, the mean over latent
    steps. Of many groups, the 20 with the largest differences are shown, or 10 with many blocks.
    """
    values, order = parts(document, "use_by_group"), group_order(document)
    if not order:
        return None
    shown = order[: 20 if len(values) <= 4 else 10]
    names = [drawing.short(str(document["run"]["groups"][g])) for g in shown]
    pictures: dict[str, np.ndarray] = {}
    for block, use in values.items():
        difference = 100 * (use - group_mean(use))[shown]
        if use.shape[1] * use.shape[2] > 16:
            difference = difference.mean(1, keepdims=True)
        pictures[block] = difference
    _, latent_steps, experts = next(iter(pictures.values())).shape
    norm = CenteredNorm(0, _half_range(pictures))
    figure, axes = drawing.block_panels(list(values), 0.5 + 0.19 * len(shown))
    ticks = [t * experts + m for t in range(latent_steps) for m in range(experts)]
    for block, one in axes.items():
        if latent_steps > 1:
            drawing.write_title(one, f"block {block}\n")  # above the names of latent steps
            for t in range(latent_steps):
                middle = (t + 0.5) * experts - 0.5
                one.text(middle, -0.6, f"step {t + 1}", ha="center", va="bottom", fontsize=9)
        one.imshow(
            pictures[block].reshape(len(shown), -1), aspect="auto", cmap=drawing.DIVERGING,
            norm=norm, interpolation="nearest",
        )  # fmt: skip
        for t in range(1, latent_steps):
            one.axvline(t * experts - 0.5, color="black", linewidth=1)
        one.set_yticks(range(len(shown)), names, parse_math=False, fontsize=9)
        if len(ticks) <= 16:
            one.set_xticks(ticks, [str(i % experts) for i in ticks])
    every = np.array([*axes.values()])
    drawing.add_colour_bar(figure, every, ScalarMappable(norm, drawing.DIVERGING), DEVIATION)
    figure.supxlabel("expert", fontsize=10)
    return drawing.to_png(figure)


def _half_range(pictures: dict[str, np.ndarray]) -> float:
    return max(SMALLEST_RANGE, *(float(np.nanmax(np.abs(p))) for p in pictures.values()))


def draw_use_by_place(document: Document) -> bytes | None:
    """Draw where in the picture an expert is used more or less than on average, as maps.

    A row is an expert of a block: of two experts one, as the other's map is its negative, and of
    more the three whose use varies most over the picture, or one if there are several blocks. A
    column is a latent step: all, or the first, a middle one and the last. At most six blocks are
    shown.
    """
    values = parts(document, "use_by_place")
    if not values:
        return None
    blocks = [list(values)[i] for i in picked(len(values), MAX_BLOCKS)]
    latent_steps, experts, rows, columns = values[blocks[0]].shape
    steps = picked(latent_steps, 3)
    maps: dict[str, np.ndarray] = {}
    for block in blocks:
        use = 100 * values[block]
        deviation = use - np.nanmean(use, axis=(2, 3), keepdims=True)
        spread = np.nan_to_num(deviation).std(axis=(0, 2, 3))
        count = 1 if experts <= 2 or len(blocks) > 1 else 3
        chosen = [1] if experts == 2 else sorted(np.argsort(-spread, kind="stable")[:count])
        maps |= {f"block {block}\nexpert {m}": deviation[steps, m] for m in chosen}
    norm = CenteredNorm(0, _half_range(maps))
    height = min(2.2, 0.88 * drawing.WIDTH / len(steps) * rows / columns) + 0.1
    figure, axes = drawing.panels(len(maps), len(steps), height, extra=0.8)
    for row, pictures in zip(axes, maps.values(), strict=True):
        for one, picture in zip(row, pictures, strict=True):
            one.imshow(picture, cmap=drawing.DIVERGING, norm=norm, interpolation="nearest")
            one.set(xticks=[], yticks=[])
            one.spines[["top", "right"]].set_visible(True)
    drawing.name_rows_and_columns(axes, list(maps), [f"latent step {t + 1}" for t in steps])
    drawing.add_colour_bar(figure, axes, ScalarMappable(norm, drawing.DIVERGING), DEVIATION)
    return drawing.to_png(figure)


def draw_information(document: Document) -> bytes | None:
    """Draw the bits that each variable tells about the expert, with the permutation baseline.

    The bars are the plug-in estimates; the black marks reach from the mean over permutations to
    their 97.5 % quantile. A bar that ends inside its mark is no more than chance.
    """
    values = information(document)
    if not values:
        return None
    variables = list(dict.fromkeys(name for found in values.values() for name in found))
    figure, axes = drawing.block_panels(list(values), 0.45 + 0.26 * len(variables))
    highest = max(entry["bits"] for found in values.values() for entry in found.values())
    highest = max(highest, 1e-3)
    for block, one in axes.items():
        for i, name in enumerate(variables):
            entry = values[block].get(name)
            if entry is None:
                continue
            one.barh(i, entry["bits"], color=drawing.EXPERT_COLOURS[0], height=0.65)
            low, high = entry.get("permuted_mean"), entry.get("permuted_high")
            if low is not None and high is not None:
                one.barh(i, max(high - low, 0.006 * highest), left=low, color="black", height=0.85)
            end = max(entry["bits"], high or 0)
            shown = f"{entry['bits']:.2g}" if entry["bits"] >= 0.001 else "< 0.001"
            one.text(end + 0.03 * highest, i, shown, va="center", fontsize=9)
        one.set_yticks(range(len(variables)), [variable_name(document, name) for name in variables])
        one.set_ylim(len(variables) - 0.4, -0.6)
        one.set_xlim(0, 1.35 * highest)
        one.locator_params(axis="x", nbins=3)
    handles = [Line2D([], [], color=c, linewidth=6) for c in (drawing.EXPERT_COLOURS[0], "black")]
    drawing.add_legend(figure, handles, ["measured", "by chance"])
    figure.supxlabel("mutual information with the expert (bits)", fontsize=10)
    return drawing.to_png(figure)


def draw_effective_experts(document: Document) -> bytes | None:
    """Draw the effective number of experts of each block: a dot for each latent step."""
    values = parts(document, "effective_experts")
    if not values:
        return None
    experts, count = document["run"]["experts"], max(len(v) for v in values.values())
    colours = drawing.latent_step_colours(count)
    figure, axes = drawing.panels(1, 1, 0.6 + 0.32 * len(values), extra=0.9)
    one = axes[0, 0]
    for row, effective in enumerate(values.values()):
        # Dots of equal values are shifted, so that each is seen.
        offsets = (np.arange(len(effective)) - (len(effective) - 1) / 2) * (0.5 / count)
        one.scatter(effective, row + offsets, c=colours[: len(effective)], s=36, zorder=3)
    one.axvline(experts, color=drawing.GREY, linestyle=":")
    one.set_yticks(range(len(values)), [f"block {block}" for block in values])
    one.set_ylim(len(values) - 0.4, -0.6)
    one.set_xlim(0.9, 1.02 * experts + 0.1)
    one.grid(axis="x", alpha=0.3)
    one.set_xlabel(f"effective number of experts (of {experts})")
    if experts <= 8:
        one.set_xticks(range(1, experts + 1))
    handles = [Line2D([], [], color=colour, marker="o", linestyle="") for colour in colours]
    drawing.add_legend(figure, handles, latent_step_names(count))
    return drawing.to_png(figure)

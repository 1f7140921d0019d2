"""What all figures share: sizes, colours, panels, and rendering as PNG."""

import io
import math
import warnings
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import BoundaryNorm, ListedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from tp_jax.pictures.experts import EXPERT_COLOURS, expert_colours

# On a phone a figure is about 350 pixels wide. With this width in inches, matplotlib's text of 10
# points is then 10 pixels high.
WIDTH = 5.0
DPI = 160
# Taller figures are rendered with fewer dots per inch, which bounds memory and file size.
MAX_PIXELS = 5000
# Diverging and safe for any colour vision: negative orange, zero white, positive purple.
DIVERGING = "PuOr"
GREY = "#6B6B6B"


def hex_colours(count: int) -> list[str]:
    """Return the colours of the experts as matplotlib takes them."""
    return [to_hex(colour) for colour in expert_colours(count) / 255]


def latent_step_colours(count: int) -> list[str]:
    """Return the colours of latent steps 1 … T, from dark to light."""
    return _sampled("magma", 0.15, 0.75, count)


def _sampled(name: str, low: float, high: float, count: int) -> list[str]:
    colours = mpl.colormaps[name](np.linspace(low, high, count))
    return [to_hex(colour) for colour in colours]


def panels(
    rows: int, columns: int, row_height: float, *, extra: float = 0.7, sharex: bool = True,
    sharey: bool = True,
) -> tuple[Figure, np.ndarray]:  # fmt: skip
    """Create a figure with a grid of panels that share their axes.

    Args:
      rows: number of rows.
      columns: number of columns.
      row_height: height of a row in inches.
      extra: height in inches for the legend and the axis labels.
      sharex: use one x axis for all panels.
      sharey: use one y axis for all panels.

    Returns:
      The figure, and its axes as an object array [rows, columns].
    """
    figure = Figure(figsize=(WIDTH, rows * row_height + extra), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=sharex, sharey=sharey)
    for one in axes.flat:
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def block_panels(blocks: Sequence[str], row_height: float) -> tuple[Figure, dict[str, Axes]]:
    """Create a figure with one panel per block, two in a row, titled "block 12"."""
    columns = min(2, len(blocks))
    rows = math.ceil(len(blocks) / columns)
    figure, axes = panels(rows, columns, row_height)
    found = dict(zip(blocks, axes.flat, strict=False))
    for block, one in found.items():
        write_title(one, f"block {block}")
    for unused in axes.flat[len(blocks) :]:
        unused.set_axis_off()
        above = axes[-2, -1] if rows > 1 else None
        if above is not None:  # It is the lowest panel of its column.
            above.tick_params(labelbottom=True)
    return figure, found


def write_title(axes: Axes, text: str) -> None:
    """Write a panel's title, at the left."""
    axes.set_title(text, fontsize=10, loc="left", parse_math=False)


def name_rows_and_columns(axes: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> None:
    """Write the names of columns above the first row, and those of rows beside the first column."""
    for one, name in zip(axes[0], columns, strict=True):
        one.set_title(name, fontsize=10)
    for one, name in zip(axes[:, 0], rows, strict=True):
        one.set_ylabel(name, parse_math=False)


def timestep_axis(axes: Axes, timesteps: Sequence[float], ticks: int = 4) -> None:
    """Let the x axis run in the order of sampling, from noise at the left to the picture."""
    if timesteps[0] != timesteps[-1]:
        axes.set_xlim(timesteps[0], timesteps[-1])
    axes.locator_params(axis="x", nbins=ticks)


TIMESTEP_LABEL = "timestep (noise → picture)"


def add_legend(figure: Figure, handles: Sequence, labels: Sequence[str], columns: int = 3) -> None:
    """Write a legend above the panels."""
    if handles:
        figure.legend(
            handles, labels, loc="outside upper center", ncols=min(columns, len(handles)),
            frameon=False, handlelength=1.4, columnspacing=1.0,
        )  # fmt: skip


def add_expert_legend(figure: Figure, axes: np.ndarray, count: int) -> None:
    """Name the colours of the experts: a legend for up to eight, a colour bar for more."""
    colours = hex_colours(count)
    if count <= len(EXPERT_COLOURS):
        patches = [Patch(color=colour) for colour in colours]
        add_legend(figure, patches, [f"expert {m}" for m in range(count)], columns=4)
        return
    norm = BoundaryNorm(np.arange(count + 1) - 0.5, count)
    mappable = ScalarMappable(norm, ListedColormap(colours))
    bar = add_colour_bar(figure, axes, mappable, "expert")
    bar.set_ticks(np.linspace(0, count - 1, 5).round().tolist())


def add_colour_bar(
    figure: Figure, axes: np.ndarray, mappable: ScalarMappable, label: str
) -> Colorbar:
    """Draw a colour bar above the panels, equally thick in figures of every height."""
    height = figure.get_figheight()
    bar = figure.colorbar(
        mappable, ax=axes, location="top", aspect=40, fraction=0.15 / height, pad=0.05 / height
    )
    bar.set_label(label)
    return bar


def short(text: str, limit: int = 18) -> str:
    """Return a text on one line, with at most `limit` characters, for an axis."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def to_png(figure: Figure) -> bytes:
    """Render a figure as a PNG."""
    buffer = io.BytesIO()
    dpi = min(DPI, MAX_PIXELS / figure.get_figheight())
    with warnings.catch_warnings():
        # Characters that the font lacks, as in names of classes, are drawn as boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="png", dpi=dpi, facecolor="white")
    return buffer.getvalue()

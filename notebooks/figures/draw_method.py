"""Draw the figure of the method: python notebooks/figures/draw_method.py writes method.png here."""

import pathlib

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

FROZEN, TRAINED, PLAIN = "#dfe6ee", "#ffd9a0", "#ffffff"


def box(axes, x, y, width, height, text, colour=PLAIN, size=9):
    """Draw a box with its centre at (x, y)."""
    patch = FancyBboxPatch(
        (x - width / 2, y - height / 2), width, height,
        boxstyle="round,pad=0.02,rounding_size=0.08", facecolor=colour, edgecolor="#404040",
    )  # fmt: skip
    axes.add_patch(patch)
    axes.text(x, y, text, ha="center", va="center", fontsize=size)


def arrow(axes, start, end, curve=0.0, colour="#404040"):
    """Draw an arrow from one point to another."""
    style = f"arc3,rad={curve}"
    axes.add_patch(
        FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, color=colour,
                        connectionstyle=style, shrinkA=0, shrinkB=0)
    )  # fmt: skip


def draw_blocks(axes):
    """Draw the transformer, with one thinking layer."""
    axes.text(1.1, 6.35, "transformer", ha="center", fontsize=10, weight="bold")
    names = ["block", "block", "block that thinks", "block", "block"]
    for i, name in enumerate(names):
        colour = TRAINED if i == 2 else FROZEN
        box(axes, 1.1, 1.2 + i, 1.9, 0.62, name, colour)
        if i:
            arrow(axes, (1.1, 0.53 + i), (1.1, 0.87 + i))
    axes.text(1.1, 0.45, "noisy latents, timestep, condition", ha="center", fontsize=8)
    axes.plot([2.08, 3.0], [3.5, 6.1], ":", color="#909090")
    axes.plot([2.08, 3.0], [2.9, 0.6], ":", color="#909090")


def draw_layer(axes):
    """Draw the thinking layer, which takes the place of the block's attention."""
    axes.text(7.3, 6.35, "its attention: T latent steps", ha="center", fontsize=10, weight="bold")
    box(axes, 3.95, 2.2, 1.5, 0.8, "vision tokens\n$\\tilde{a}^{t-1}$")
    box(axes, 6.15, 4.1, 1.9, 0.85, "gate\n(token, timestep,\ncondition)", TRAINED, 8)
    for i, name in enumerate(("expert 1", "expert 2", "expert M")):
        box(axes, 6.15, 2.75 - 0.62 * i, 1.5, 0.46, f"{name}: LoRA", TRAINED, 8)
    box(axes, 8.55, 2.2, 1.1, 0.8, "Q, K, V of\nthe tokens", size=8)
    box(axes, 10.3, 2.2, 1.25, 0.8, "attention")
    arrow(axes, (4.72, 2.2), (5.36, 2.2))
    arrow(axes, (4.3, 2.62), (5.15, 4.0), -0.2)
    arrow(axes, (6.15, 3.65), (6.15, 3.02), colour="#c06000")
    axes.text(6.28, 3.32, "picks one expert per token", fontsize=8, color="#c06000")
    arrow(axes, (6.93, 2.2), (7.97, 2.2))
    arrow(axes, (9.13, 2.2), (9.65, 2.2))
    # The way back, for all but the last latent step.
    axes.plot([10.3, 10.3, 3.95], [2.62, 5.55, 5.55], color="#404040", lw=1)
    arrow(axes, (3.95, 5.55), (3.95, 2.64))
    axes.text(7.1, 5.65, r"$t < T$:  $\tilde{a}^{t} = $ attention $+ \ \tilde{x}$", fontsize=9)
    box(axes, 8.55, 0.75, 2.35, 0.6, "frozen base Q, K, V of $\\tilde{x}$", FROZEN, 8)
    arrow(axes, (8.55, 1.07), (8.55, 1.78))
    axes.text(8.68, 1.4, "added at $t = T$ only", fontsize=8)
    arrow(axes, (10.95, 2.2), (11.6, 2.2))
    axes.text(11.65, 2.2, "$t = T$:\noutput", fontsize=9, va="center")
    box(axes, 4.1, 0.75, 0.3, 0.25, "", TRAINED)
    axes.text(4.35, 0.75, "trained", fontsize=8, va="center")
    box(axes, 5.4, 0.75, 0.3, 0.25, "", FROZEN)
    axes.text(5.65, 0.75, "frozen", fontsize=8, va="center")


def main() -> None:
    figure, axes = plt.subplots(figsize=(10.5, 4.6))
    axes.set(xlim=(0, 12.5), ylim=(0.2, 6.7))
    axes.axis("off")
    draw_blocks(axes)
    draw_layer(axes)
    out = pathlib.Path(__file__).with_name("method.png")
    figure.savefig(out, dpi=110, bbox_inches="tight", metadata={"Software": None})
    print(f"wrote {out}")


if __name__ == "__main__":
    main()

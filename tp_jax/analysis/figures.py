"""The figures of an analysis by name, and the paper's figures from the same data.

Every function takes the document and the folder with its pictures, and returns a PNG, or None if
the data lack what the figure shows.
"""

import io
from collections.abc import Callable, Sequence

from etils import epath
from PIL import Image

from tp_jax.analysis import routing_figures, token_figures
from tp_jax.analysis.document import Document, thinking_off
from tp_jax.files.atomic import write_bytes

Drawing = Callable[[Document, epath.Path], bytes | None]


def _without_folder(draw: Callable[[Document], bytes | None]) -> Drawing:
    return lambda document, folder: draw(document)


trajectories = _without_folder(token_figures.draw_trajectories)


def _stacked(names: Sequence[str], folder: epath.Path) -> bytes | None:
    """Return the pictures that exist one below the other."""
    found = [picture for name in names if (picture := open_picture(folder / name)) is not None]
    if not found:
        return None
    canvas = Image.new(
        "RGB", (max(one.width for one in found), sum(one.height + 8 for one in found) - 8), "white"
    )
    top = 0
    for one in found:
        canvas.paste(one, (0, top))
        top += one.height + 8
    buffer = io.BytesIO()
    canvas.save(buffer, "png")
    return buffer.getvalue()


def open_picture(path: epath.Path) -> Image.Image | None:
    """Return a picture in RGB; None if it doesn't exist or can't be read."""
    try:
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError):
        return None


def base_beside_thinking(document: Document, folder: epath.Path) -> bytes | None:
    """Show samples with thinking beside those of the base on the same noise."""
    off = thinking_off(document)
    return _stacked([off["image"]], folder) if off and off.get("image") else None


def expert_of_each_token(document: Document, folder: epath.Path) -> bytes | None:
    """Show which expert each token takes at each latent step, as maps beside the samples."""
    maps = (document.get("samples") or {}).get("maps") or {}
    return _stacked(list(maps.values()), folder)


def latent_steps_decoded(document: Document, folder: epath.Path) -> bytes | None:
    """Show what the samples become if the recursion ends at latent step 1, 2, …: "T = 1" …"""
    found = document.get("interventions") or []
    names = [one["image"] for one in found if one["name"].startswith("T =") and one.get("image")]
    return _stacked(names, folder)


def failures(document: Document, folder: epath.Path) -> bytes | None:
    """Show the samples with the lowest scores, with their routing."""
    return _stacked(
        [one["image"] for one in document.get("worst") or [] if one.get("image")], folder
    )


# Figure 3 of the paper is the PCA of token trajectories, and Figure 2 its grids of samples. The
# other three numbers are given to what the paper shows beside these, in the order of its text:
# which expert each token takes, frames decoded from each latent step, and failures. They are named
# for people who look for the same content; layout and data differ from the paper's.
PAPER_FIGURES: dict[str, Drawing] = {
    "figure_2": base_beside_thinking,
    "figure_3": trajectories,
    "figure_4": expert_of_each_token,
    "figure_6": latent_steps_decoded,
    "figure_7": failures,
}
ANALYSIS_FIGURES: dict[str, Drawing] = {
    "entropy": _without_folder(routing_figures.draw_entropy),
    "kept": _without_folder(routing_figures.draw_kept),
    "use": _without_folder(routing_figures.draw_use),
    "effective_experts": _without_folder(routing_figures.draw_effective_experts),
    "information": _without_folder(routing_figures.draw_information),
    "use_by_group": _without_folder(routing_figures.draw_use_by_group),
    "use_by_place": _without_folder(routing_figures.draw_use_by_place),
    "similarity": _without_folder(token_figures.draw_similarity),
    "latent_steps": _without_folder(token_figures.draw_latent_steps),
    "latent_steps_by_place": _without_folder(token_figures.draw_latent_steps_by_place),
    "moves": _without_folder(token_figures.draw_moves),
    "ratios": _without_folder(token_figures.draw_ratios),
    "together": _without_folder(token_figures.draw_together),
    "trajectories": trajectories,
    "interventions": _without_folder(token_figures.draw_interventions),
}
FIGURES: dict[str, Drawing] = ANALYSIS_FIGURES | PAPER_FIGURES


def file_name(name: str) -> str:
    """Return the file name of a figure.

    Example:
      >>> file_name("figure_3")
      'figure_3.png'
    """
    return f"{name}.png"


def write_figures(document: Document, folder: epath.Path) -> dict[str, bytes]:
    """Draw all figures that the document has data for, and write them as PNG files.

    Args:
      document: the analysis.
      folder: has the pictures that the document names; the figures are written there.

    Returns:
      The PNG of each figure that was drawn, by its name in `FIGURES`.
    """
    drawn: dict[str, bytes] = {}
    made: dict[Drawing, bytes | None] = {}  # Some figures have two names.
    for name, draw in FIGURES.items():
        if draw not in made:
            made[draw] = draw(document, folder)
        data = made[draw]
        if data is not None:
            write_bytes(folder / file_name(name), data)
            drawn[name] = data
    return drawn

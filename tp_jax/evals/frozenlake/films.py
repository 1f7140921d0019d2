"""Pictures of plays: filmstrips of what was drawn and what is true, and an animated walk."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from etils import epath
from PIL import Image

from tp_jax.evals.frozenlake.plays import OUTCOMES, Play
from tp_jax.pictures.galleries import make_filmstrips
from tp_jax.pictures.grids import save_png, to_uint8
from tp_jax.worlds.frozenlake.frames import Canvas
from tp_jax.worlds.frozenlake.maps import find

# Filmstrips of each kind that are drawn, and frames of the GIF a second.
SHOWN, GIF_RATE = 8, 2


@dataclasses.dataclass
class Film:
    """The frames that a play was given, and those that it should have been, each [S, S, 3]."""

    first: np.ndarray
    drawn: list[np.ndarray] = dataclasses.field(default_factory=list)
    true: list[np.ndarray] = dataclasses.field(default_factory=list)


def show_films(
    out: epath.Path, plays: Sequence[Play], films: Sequence[Film], canvas: Canvas
) -> None:
    """Filmstrips of good and bad plays, of every outcome some, and an animated walk.

    The walk is as it was drawn, and beside it as the environment played it.
    """
    order = sorted(range(len(plays)), key=lambda i: -len(plays[i].cells))
    good = [i for i in order if plays[i].outcome == "goal"]
    by_outcome = [[i for i in order if plays[i].outcome == name] for name in OUTCOMES[1:]]
    bad = [group[k] for k in range(SHOWN) for group in by_outcome if k < len(group)]
    for name, chosen in (("successes", good[:SHOWN]), ("failures", bad[:SHOWN])):
        path = out / f"{name}.png"
        if not chosen:
            # None of an earlier run's.
            path.unlink(missing_ok=True)
            continue
        strips = []
        for i in chosen:
            count, film = len(plays[i].cells), films[i]
            # The font has no ×.
            size, outcome = plays[i].place.size.replace("×", "x"), str(plays[i].outcome)
            title = f"{size}, {count} frames: {outcome.replace('_', ' ')} (above drawn, below true)"
            pairs = [[film.first, *film.drawn[:count]], [film.first, *film.true[:count]]]
            strips.append((title, plays[i].outcome == "goal", [_pixels(row) for row in pairs]))
        save_png(path, np.asarray(make_filmstrips(strips)))
    if good or bad:
        i = (good or bad)[0]
        count = len(plays[i].cells)
        place, cells = plays[i].place, [find(plays[i].place.desc, "S"), *plays[i].cells]
        played = [canvas.draw(place.desc, cell, place.corner) for cell in cells]
        pairs = zip(
            _pixels([films[i].first, *films[i].drawn[:count]]), _pixels(played), strict=True
        )
        zoom = max(1, 240 // (canvas.cells * canvas.tile))
        between = np.full((canvas.cells * canvas.tile, 1, 3), 255, np.uint8)
        beside = [np.concatenate((drawn, between, true), axis=1) for drawn, true in pairs]
        pictures = [
            Image.fromarray(both.repeat(zoom, axis=0).repeat(zoom, axis=1)) for both in beside
        ]
        with (out / "walk.gif").open("wb") as file:
            pictures[0].save(
                file, format="gif", save_all=True, append_images=pictures[1:],
                duration=1000 // GIF_RATE, loop=0,
            )  # fmt: skip


def _pixels(frames: Sequence[np.ndarray]) -> np.ndarray:
    return to_uint8(2 * np.stack(frames) - 1)

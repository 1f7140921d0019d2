"""Pictures of plays: filmstrips of generated and true frames, and an animated walk."""

import dataclasses
import io
from collections.abc import Sequence

import numpy as np
from etils import epath
from PIL import Image

from tp_jax.evals.frozenlake.plays import OUTCOMES, Play
from tp_jax.files.atomic import write_bytes
from tp_jax.pictures.galleries import make_filmstrips
from tp_jax.pictures.grids import save_png, to_uint8
from tp_jax.worlds.frozenlake.frames import Canvas
from tp_jax.worlds.frozenlake.maps import find

MAX_STRIPS = 8  # filmstrips in a picture
GIF_RATE = 2  # frames per second


@dataclasses.dataclass
class Film:
    """The generated frames of a play and the true frames, each [S, S, 3] in [0, 1].

    Attributes:
      first: the frame that the play starts from.
      generated: the generated frames.
      true: the frame that should have been generated in place of each.
    """

    first: np.ndarray
    generated: list[np.ndarray] = dataclasses.field(default_factory=list)
    true: list[np.ndarray] = dataclasses.field(default_factory=list)


def save_films(
    out: epath.Path, plays: Sequence[Play], films: Sequence[Film], canvas: Canvas
) -> None:
    """Write filmstrips of successful and failed plays, and an animation of one play.

    Writes `successes.png`, `failures.png` (some of each outcome) and `walk.gif`, which shows the
    generated frames on the left and the moves as the environment played them on the right.

    Args:
      out: existing folder for the files.
      plays, films: the plays and their frames, in the same order.
      canvas: renders the frames of the environment.
    """
    order = sorted(range(len(plays)), key=lambda i: -len(plays[i].cells))
    good = [i for i in order if plays[i].outcome == "goal"]
    by_outcome = [[i for i in order if plays[i].outcome == name] for name in OUTCOMES[1:]]
    bad = [group[k] for k in range(MAX_STRIPS) for group in by_outcome if k < len(group)]
    for name, chosen in (("successes", good[:MAX_STRIPS]), ("failures", bad[:MAX_STRIPS])):
        path = out / f"{name}.png"
        if not chosen:
            # Remove the file of an earlier evaluation, which would look like a result of this one.
            path.unlink(missing_ok=True)
            continue
        strips = []
        for i in chosen:
            count, film = len(plays[i].cells), films[i]
            # The font has no glyph for "×".
            size, outcome = plays[i].place.size.replace("×", "x"), str(plays[i].outcome)
            title = (
                f"{size}, {count} frames: {outcome.replace('_', ' ')} (generated above, true below)"
            )
            pairs = [[film.first, *film.generated[:count]], [film.first, *film.true[:count]]]
            strips.append((title, plays[i].outcome == "goal", [_pixels(row) for row in pairs]))
        save_png(path, np.asarray(make_filmstrips(strips)))
    if good or bad:
        i = (good or bad)[0]
        count = len(plays[i].cells)
        place, cells = plays[i].place, [find(plays[i].place.desc, "S"), *plays[i].cells]
        played = [canvas.draw(place.desc, cell, place.corner) for cell in cells]
        pairs = zip(
            _pixels([films[i].first, *films[i].generated[:count]]), _pixels(played), strict=True
        )
        zoom = max(1, 240 // (canvas.cells * canvas.tile))
        between = np.full((canvas.cells * canvas.tile, 1, 3), 255, np.uint8)
        side_by_side = [np.concatenate((left, between, right), axis=1) for left, right in pairs]
        pictures = [
            Image.fromarray(both.repeat(zoom, axis=0).repeat(zoom, axis=1)) for both in side_by_side
        ]
        buffer = io.BytesIO()
        pictures[0].save(
            buffer, format="gif", save_all=True, append_images=pictures[1:],
            duration=1000 // GIF_RATE, loop=0,
        )  # fmt: skip
        write_bytes(out / "walk.gif", buffer.getvalue())


def _pixels(frames: Sequence[np.ndarray]) -> np.ndarray:
    # A frame may have NaN, which the suite counts as unreadable; it is drawn black.
    return to_uint8(np.nan_to_num(2 * np.stack(frames) - 1, nan=-1.0))

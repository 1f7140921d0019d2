"""FrozenLake as a task: first frames of maps of all sizes in turn, and a walk through each map."""

import dataclasses
from typing import ClassVar

import numpy as np

from tp_jax.evals.frozenlake.walking import MapSet, frame_generator, walk_maps
from tp_jax.evals.task import Judgement, Task
from tp_jax.models.parameters import Params
from tp_jax.pictures.grids import make_grid, to_uint8
from tp_jax.sampling.generator import Generator
from tp_jax.worlds.frozenlake.maps import find

# Frames of a walk in its picture.
MAX_FRAMES = 8


@dataclasses.dataclass(frozen=True)
class FrozenLakeTask(Task):
    """The first frames of maps that training never shows, of every size in turn.

    Attributes:
      maps: the maps, in the order of the conditions.
      look: start every sample from the true frame instead of the last generated frame.
    """

    score_name: ClassVar[str] = "goal reached"
    maps: MapSet
    look: bool

    def judge(
        self, generator: Generator, params: Params, images: np.ndarray, seed: int
    ) -> Judgement | None:
        """Walk through the maps, as in `Task`. A model without thinking layers can't walk."""
        if not generator.model.config.thinking.layers:
            return None
        maps = dataclasses.replace(self.maps, places=self.maps.places[: len(images)])
        frames_of = frame_generator(generator, maps)
        plays, films = walk_maps(frames_of, params, maps, seed, self.look)
        texts, pictures = [], []
        for play, film in zip(plays, films, strict=True):
            outcome, count = str(play.outcome).replace("_", " "), len(play.cells)
            texts.append(f"{play.place.size}: {outcome} after {count} frames")
            frames = np.stack([film.first, *film.generated[: min(count, MAX_FRAMES)]])
            # A frame may have NaN, which counts as unreadable; it is drawn black.
            shown = to_uint8(np.nan_to_num(2 * frames - 1, nan=-1.0))
            pictures.append(make_grid(shown, len(shown), min_side=64))
        scores = np.array([play.outcome == "goal" for play in plays], np.float64)
        return Judgement(scores, texts, pictures)


def make_task(maps: MapSet, look: bool) -> FrozenLakeTask:
    """Return the task of walking through maps.

    Args:
      maps: the maps.
      look: as in `FrozenLakeTask`.
    """
    by_size: dict[str, list[int]] = {}
    for number, place in enumerate(maps.places):
        by_size.setdefault(place.size, []).append(number)
    # The first n conditions then have all sizes; there may be fewer maps of a small size.
    longest = max(map(len, by_size.values()))
    order = [of[turn] for turn in range(longest) for of in by_size.values() if turn < len(of)]
    places = [maps.places[number] for number in order]
    first = [maps.canvas.draw(place.desc, find(place.desc, "S"), place.corner) for place in places]
    conditions = {
        "label": np.zeros(len(places), np.int32),
        "frame": 2 * np.stack(first).astype(np.float32) - 1,
    }
    return FrozenLakeTask(conditions, (), dataclasses.replace(maps, places=places), look)

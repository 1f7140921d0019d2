"""Walks through maps, drawing after drawing, played and scored. T latent steps of a drawing."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from tp_jax.evals.frozenlake.films import Film
from tp_jax.evals.frozenlake.generator import FrameGenerator
from tp_jax.evals.frozenlake.plays import (
    Place,
    Play,
    held_out_places,
    score,
    walk_as_oracle,
    walk_randomly,
)
from tp_jax.files.jsonl import read_text
from tp_jax.messages.errors import UserError
from tp_jax.messages.progress import progress_bar, say
from tp_jax.parallel.mesh import padded_batch_size
from tp_jax.sampling.generator import Generator
from tp_jax.worlds.frozenlake.frames import Canvas
from tp_jax.worlds.frozenlake.maps import check_map, walk
from tp_jax.worlds.frozenlake.settings import FrozenLakeConfig

# Maps of each size, where not said.
NUM = 100


@dataclasses.dataclass(frozen=True)
class Lakes:
    """Maps to be walked, and how they are shown.

    Attributes:
      places: the maps.
      refused: number of maps of a file that can't be played.
      canvas: draws and reads frames.
      fields: of `config.frozenlake`.
    """

    places: Sequence[Place]
    refused: int
    canvas: Canvas
    fields: FrozenLakeConfig


def choose_lakes(
    fields: FrozenLakeConfig,
    canvas: Canvas,
    num: int | None,
    seed: int,
    maps: epath.Path | None = None,
) -> Lakes:
    """Maps that training never shows.

    Args:
      num: of each size, 100 by default; of a file, its first so many, or all.
      seed: of random maps.
      maps: a file of maps, one row a line and an empty line between two; None draws random ones.

    Raises:
      UserError: there is no map to be played.
    """
    if maps is None:
        sizes = (*fields.sizes, *fields.unseen_sizes)
        found = held_out_places(sizes, fields.frozen, canvas, NUM if num is None else num, seed)
        return Lakes(found, 0, canvas, fields)
    places, refused = [], 0
    for number, block in enumerate(_blocks(read_text(maps)), 1):
        reason = check_map(block, canvas.max_cells)
        if reason:
            refused += 1
            say(f"{maps}: map {number} {reason}; it is left out")
        else:
            places.append(Place(block, (0, 0)))
    if not places:
        raise UserError(
            f"--maps={maps} has no map that can be played, of {refused}: rows of S, F, H and "
            f"G, an empty line between maps"
        )
    return Lakes(places[:num], refused, canvas, fields)


def _blocks(text: str) -> list[tuple[str, ...]]:
    """Lines between empty ones."""
    lines = [line.strip() for line in text.splitlines()]
    return [tuple(group) for filled, group in itertools.groupby(lines, bool) if filled]


def frame_generator(generator: Generator, lakes: Lakes) -> FrameGenerator:
    """A generator of the frames of every latent step, in batches no larger than there are maps."""
    fields: dict[str, Any] = {
        field.name: getattr(generator, field.name) for field in dataclasses.fields(Generator)
    }
    fields["batch_size"] = min(
        generator.batch_size, padded_batch_size(generator.mesh, len(lakes.places))
    )
    return FrameGenerator(**fields, read_sigma=lakes.fields.read_sigma)


def walk_lakes(
    generator: FrameGenerator, params: Any, lakes: Lakes, seed: int, look: bool
) -> tuple[list[Play], list[Film]]:
    """Plays all maps: drawing after drawing, each from the last frame of the one before.

    Args:
      look: draw every time from the true frame, instead of from the last drawn one.
    """
    canvas = lakes.canvas
    plays = [Play(place) for place in lakes.places]
    seen = [canvas.draw(play.place.desc, play.cell, play.place.corner) for play in plays]
    films = [Film(frame) for frame in seen]
    drawing = 0
    with progress_bar(len(plays), "walking", "map") as bar:
        while going := [i for i, play in enumerate(plays) if play.outcome is None]:
            # Always whole batches, so that there is one shape to compile.
            rows = np.resize(going, -(-len(going) // generator.batch_size) * generator.batch_size)
            batches = generator.batches(
                params,
                {
                    "label": np.zeros(len(plays), np.int32),
                    "frame": 2 * np.stack(seen).astype(np.float32) - 1,
                },
                # Each drawing has noise of its own.
                int(np.random.SeedSequence([seed, drawing]).generate_state(1)[0]),
                rows=rows,
                indices=rows,
            )
            drawn = np.concatenate(list(batches))[: len(going)]
            for i, frames in zip(going, (drawn + 1) / 2, strict=True):
                play, place = plays[i], plays[i].place
                shape = len(place.desc), len(place.desc[0])
                for frame, cell in zip(
                    frames, walk(place.desc, play.cell, len(frames)), strict=True
                ):
                    films[i].drawn.append(frame)
                    films[i].true.append(canvas.draw(place.desc, cell, place.corner))
                play.take([canvas.read(frame, shape, place.corner) for frame in frames])
                seen[i] = (
                    canvas.draw(place.desc, play.cell, place.corner)
                    if look
                    else np.clip(frames[-1], 0, 1)
                )
                bar.update(play.outcome is not None)
            drawing += 1
    return plays, films


def score_walks(plays: Sequence[Play], lakes: Lakes, seed: int) -> dict[str, Any]:
    """Scores of plays, and of a random walker and an oracle on the same maps."""
    rng, unseen = np.random.default_rng(seed), lakes.fields.unseen_sizes
    randomly = [walk_randomly(place, rng) for place in lakes.places]
    oracle = [walk_as_oracle(place, lakes.canvas) for place in lakes.places]
    return {
        "model": score(plays, unseen),
        "random_walker": score(randomly, unseen),
        "oracle": score(oracle, unseen),
    }

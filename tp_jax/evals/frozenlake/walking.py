"""Generate walks through FrozenLake maps, play them in the environment, and score them.

The model is sampled repeatedly; each sample gives T frames, one for each latent step.
"""

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

# Default number of maps of each size.
DEFAULT_NUM = 100


@dataclasses.dataclass(frozen=True)
class MapSet:
    """The maps to evaluate on, and how they are rendered.

    Attributes:
      places: the maps and their positions.
      refused: number of maps in the user's file that can't be played.
      canvas: renders and reads frames.
      fields: the section `config.frozenlake`.
    """

    places: Sequence[Place]
    refused: int
    canvas: Canvas
    fields: FrozenLakeConfig


def choose_maps(
    fields: FrozenLakeConfig,
    canvas: Canvas,
    num: int | None,
    seed: int,
    maps: epath.Path | None = None,
) -> MapSet:
    """Choose the maps to evaluate on: random maps that training never shows, or maps from a file.

    Args:
      fields: the section `config.frozenlake`.
      canvas: renders and reads frames.
      num: number of random maps of each size, None is 100; or of maps from the file, None is all.
      seed: seed of the random maps.
      maps: file of maps, one line per row and an empty line between maps; None generates random
        maps.

    Raises:
      UserError: no map can be played.
    """
    if maps is None:
        sizes = (*fields.sizes, *fields.unseen_sizes)
        num = DEFAULT_NUM if num is None else num
        found = held_out_places(sizes, fields.frozen, canvas, num, seed)
        return MapSet(found, 0, canvas, fields)
    places, refused = [], 0
    for number, block in enumerate(_blocks(read_text(maps)), 1):
        reason = check_map(block, canvas.max_cells)
        if reason:
            refused += 1
            say(f"{maps}: skipped map {number}: {reason}")
        else:
            places.append(Place(block, (0, 0)))
    if not places:
        raise UserError(
            f"--maps={maps}: none of its {refused} maps can be played; write each map as rows of "
            f"the letters S, F, H and G, and an empty line between maps"
        )
    return MapSet(places[:num], refused, canvas, fields)


def _blocks(text: str) -> list[tuple[str, ...]]:
    """Split a text at empty lines into groups of lines."""
    lines = [line.strip() for line in text.splitlines()]
    return [tuple(group) for filled, group in itertools.groupby(lines, bool) if filled]


def frame_generator(generator: Generator, map_set: MapSet) -> FrameGenerator:
    """Make a generator of the frames of every latent step.

    Its batches are no larger than the number of maps, rounded up to what the devices can share.
    """
    fields: dict[str, Any] = {
        field.name: getattr(generator, field.name) for field in dataclasses.fields(Generator)
    }
    fields["batch_size"] = min(
        generator.batch_size, padded_batch_size(generator.mesh, len(map_set.places))
    )
    return FrameGenerator(**fields, read_sigma=map_set.fields.read_sigma)


def walk_maps(
    generator: FrameGenerator, params: Any, map_set: MapSet, seed: int, look: bool
) -> tuple[list[Play], list[Film]]:
    """Play all maps by sampling repeatedly, each time from the last frame of the sample before.

    Args:
      generator: generates the frames of the latent steps.
      params: parameters of its model.
      map_set: the maps.
      seed: seed of the samples.
      look: start every sample from the true frame instead of the last generated frame.

    Returns:
      The plays, and their generated and true frames, in the order of the maps.
    """
    canvas = map_set.canvas
    plays = [Play(place) for place in map_set.places]
    seen = [canvas.draw(play.place.desc, play.cell, play.place.corner) for play in plays]
    films = [Film(frame) for frame in seen]
    round_number = 0
    with progress_bar(len(plays), "walking", "map") as bar:
        while active := [i for i, play in enumerate(plays) if play.outcome is None]:
            # Repeat maps to fill the last batch, so that only one shape is compiled.
            rows = np.resize(active, -(-len(active) // generator.batch_size) * generator.batch_size)
            batches = generator.batches(
                params,
                {
                    "label": np.zeros(len(plays), np.int32),
                    "frame": 2 * np.stack(seen).astype(np.float32) - 1,
                },
                # Use different noise in every round.
                int(np.random.SeedSequence([seed, round_number]).generate_state(1)[0]),
                rows=rows,
                indices=rows,
            )
            samples = np.concatenate(list(batches))[: len(active)]
            for i, frames in zip(active, (samples + 1) / 2, strict=True):
                play, place = plays[i], plays[i].place
                shape = len(place.desc), len(place.desc[0])
                for frame, cell in zip(
                    frames, walk(place.desc, play.cell, len(frames)), strict=True
                ):
                    films[i].generated.append(frame)
                    films[i].true.append(canvas.draw(place.desc, cell, place.corner))
                play.advance([canvas.read(frame, shape, place.corner) for frame in frames])
                seen[i] = (
                    canvas.draw(place.desc, play.cell, place.corner)
                    if look
                    else np.clip(frames[-1], 0, 1)
                )
                bar.update(play.outcome is not None)
            round_number += 1
    return plays, films


def score_walks(plays: Sequence[Play], map_set: MapSet, seed: int) -> dict[str, Any]:
    """Score the model's plays, and those of a random walker and an oracle on the same maps.

    Args:
      plays: the model's plays.
      map_set: the maps.
      seed: seed of the random walker.

    Returns:
      {"model": …, "random_walker": …, "oracle": …}, each a result of `plays.score`.
    """
    rng, unseen = np.random.default_rng(seed), map_set.fields.unseen_sizes
    randomly = [walk_randomly(place, rng) for place in map_set.places]
    oracle = [walk_as_oracle(place, map_set.canvas) for place in map_set.places]
    return {
        "model": score(plays, unseen),
        "random_walker": score(randomly, unseen),
        "oracle": score(oracle, unseen),
    }

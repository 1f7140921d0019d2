"""FrozenLake: a first frame, and those after each of T moves of a shortest way: no end, no disk."""

import dataclasses
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from tp_jax.data.source import Decode, Source
from tp_jax.data.sources.synthetic import as_it_is
from tp_jax.worlds.frozenlake.frames import Canvas, tiles
from tp_jax.worlds.frozenlake.maps import (
    distances_to_goal,
    find,
    import_frozen_lake,
    make_map,
    walk,
)
from tp_jax.worlds.frozenlake.settings import FrozenLakeConfig, make_canvas

# So many can be shuffled; no training sees them all.
COUNT = 2**31
# Share of the examples that begin where the agent does; the others begin anywhere with a way.
FROM_START = 0.5


@dataclasses.dataclass(frozen=True)
class _Examples:
    fields: FrozenLakeConfig
    canvas: Canvas
    moves: int

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng([int(index)])
        size = self.fields.sizes[rng.integers(len(self.fields.sizes))]
        desc = make_map(rng, size, self.fields.frozen, held_out=False)
        start = find(desc, "S")
        if rng.random() >= FROM_START:
            cells = [cell for cell, left in distances_to_goal(desc).items() if left]
            start = cells[rng.integers(len(cells))]
        corner = self.canvas.random_corner(rng, desc)
        frames = np.stack(
            [
                2 * self.canvas.draw(desc, cell, corner) - 1
                for cell in (start, *walk(desc, start, self.moves))
            ]
        )
        condition = {"label": np.int32(0), "frame": frames[0]}
        example: dict[str, Any] = {"x": frames[-1], "condition": condition}
        # Of one latent step there are none before the last.
        return example | ({"frames": frames[1:-1]} if self.moves > 1 else {})


class _FrozenLakeSource(Source):
    gives = "frame"
    pixels = False

    def decoder(self, size: int, flip: bool) -> Decode:
        """Nothing is left to do; never mirrored, because the way would be another."""
        return as_it_is


def frames_before_last(config: ConfigDict) -> dict[str, jax.ShapeDtypeStruct]:
    """{"frames": [B, T-1, S, S, 3]} float32, those before "x"; {} for one latent step."""
    before = config.model.thinking.latent_steps - 1
    if not before:
        return {}
    model, batch_size = config.model, config.train.batch_size
    shape = (batch_size, before, model.image_size, model.image_size, model.channels)
    return {"frames": jax.ShapeDtypeStruct(shape, np.float32)}


def make_frozenlake(config: ConfigDict) -> Source:
    """Examples as `config.frozenlake`, `config.model` and its number T of latent steps want them.

    Each is {"x": [S, S, 3], "frames": [T-1, S, S, 3], "condition": {"label": 0, "frame":
    [S, S, 3]}} in [-1, 1]: after T moves, after those before, and before any.

    Raises:
      UserError: the maps can't be shown, or gymnasium isn't installed.
    """
    import_frozen_lake()
    canvas = make_canvas(config)
    tiles(canvas.tile)
    fields = FrozenLakeConfig(**config.frozenlake.to_dict())
    examples = _Examples(fields, canvas, config.model.thinking.latent_steps)
    return _FrozenLakeSource(examples, config.model.image_size, channels=3, class_names=())

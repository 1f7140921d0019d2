"""FrozenLake examples, rendered on demand: a first frame and the frames after each of T moves."""

import dataclasses
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from tp_jax.data.source import SEEN, UNSEEN, Decode, Source
from tp_jax.data.sources.synthetic import return_record
from tp_jax.worlds.frozenlake.frames import Canvas, tiles
from tp_jax.worlds.frozenlake.maps import (
    distances_to_goal,
    find,
    import_frozen_lake,
    make_map,
    walk,
)
from tp_jax.worlds.frozenlake.settings import FrozenLakeConfig, make_canvas

# Number of distinct examples: the most that Grain shuffles, and more than any training reads.
COUNT = 2**31
# Probability that an example begins at the map's start. Otherwise it begins at a random cell from
# which the goal can be reached.
FROM_START = 0.5


@dataclasses.dataclass(frozen=True)
class _Examples:
    fields: FrozenLakeConfig
    canvas: Canvas
    moves: int
    # What the seed of an example has beside its index: () in training.
    seed: tuple[int, ...] = ()
    held_out: bool = False

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng([int(index), *self.seed])
        size = self.fields.sizes[rng.integers(len(self.fields.sizes))]
        desc = make_map(rng, size, self.fields.frozen, held_out=self.held_out)
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
        # With one move, there are no frames before the last.
        return example | ({"frames": frames[1:-1]} if self.moves > 1 else {})


class _FrozenLakeSource(Source):
    records: _Examples
    condition_kind = "frame"
    pixels = False

    def decoder(self, size: int, flip: bool) -> Decode:
        """Return records as they are; `flip` is ignored, because it would change the path."""
        return return_record

    def validation_sources(self, seed: int) -> dict[str, Source]:
        """Return other walks on maps such as training shows, and walks on the held-out maps."""
        parts = {
            name: dataclasses.replace(self.records, seed=(1 + seed, number), held_out=held_out)
            for number, (name, held_out) in enumerate(((SEEN, False), (UNSEEN, True)))
        }
        return {name: dataclasses.replace(self, records=part) for name, part in parts.items()}


def frames_before_last(config: ConfigDict) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes and dtypes of the frames after all moves but the last.

    Returns:
      {"frames": [B, T-1, S, S, 3] float32}, or {} if T is 1.
    """
    before = config.model.thinking.latent_steps - 1
    if not before:
        return {}
    model, batch_size = config.model, config.train.batch_size
    shape = (batch_size, before, model.image_size, model.image_size, model.channels)
    return {"frames": jax.ShapeDtypeStruct(shape, np.float32)}


def make_frozenlake(config: ConfigDict) -> Source:
    """Make a source of walks on random FrozenLake maps, as described by `config.frozenlake`.

    An example follows a shortest path for T moves, where T is the number of latent steps. It is
    {"x": [S, S, 3], "frames": [T-1, S, S, 3], "condition": {"label": 0, "frame": [S, S, 3]}}, all
    in [-1, 1]: "frame" is the frame before the first move, "frames" are those after moves 1 to T-1,
    and "x" is the frame after move T.

    Raises:
      UserError: the maps don't fit into the frames, or gymnasium isn't installed.
    """
    import_frozen_lake()
    canvas = make_canvas(config)
    tiles(canvas.tile)
    fields = FrozenLakeConfig(**config.frozenlake.to_dict())
    examples = _Examples(fields, canvas, config.model.thinking.latent_steps)
    return _FrozenLakeSource(examples, config.model.image_size, channels=3, class_names=())

"""Images of `tp_jax.worlds.shapes` with captions, rendered on demand."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from tp_jax.data.source import SEEN, UNSEEN, Decode, Source
from tp_jax.worlds.shapes.render import render
from tp_jax.worlds.shapes.scenes import (
    DIFFICULTIES,
    Difficulty,
    Scene,
    training_scene,
    unseen_scene,
)

# Number of distinct examples: the most that Grain shuffles, and more than any training reads.
COUNT = 2**31


@dataclasses.dataclass(frozen=True)
class _Scenes:
    difficulty: Difficulty
    # Seed of `make`: 0 in training.
    seed: int = 0
    make: Callable[[int, int, Difficulty], Scene] = training_scene

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> Scene:
        return self.make(int(index), self.seed, self.difficulty)


@dataclasses.dataclass(frozen=True)
class DecodeScene:
    """Render a scene to {"x": [S, S, 3] float32 in [-1, 1], "condition": {"caption": str}}.

    Attributes:
      size: side S in pixels.
    """

    size: int

    def __call__(self, scene: Scene, rng: np.random.Generator) -> dict[str, Any]:
        """Render the scene; the random generator isn't used."""
        x = 2 * render(scene, self.size) - 1
        return {"x": x, "condition": {"caption": scene.caption}}


class _ShapesSource(Source):
    records: _Scenes
    condition_kind = "caption"

    def decoder(self, size: int, flip: bool) -> Decode:
        """Return the renderer; `flip` is ignored, because captions contain left and right."""
        return DecodeScene(size)

    def validation_sources(self, seed: int) -> dict[str, Source]:
        """Return other scenes such as training shows, and scenes of held-out combinations."""
        seen = dataclasses.replace(self.records, seed=1 + seed)
        parts = {SEEN: seen, UNSEEN: dataclasses.replace(seen, make=unseen_scene)}
        return {name: dataclasses.replace(self, records=part) for name, part in parts.items()}


def make_shapes(config: ConfigDict) -> Source:
    """Make a source of the training scenes of `config.shapes.difficulty`."""
    scenes = _Scenes(DIFFICULTIES[config.shapes.difficulty])
    return _ShapesSource(scenes, image_size=None, channels=3, class_names=())

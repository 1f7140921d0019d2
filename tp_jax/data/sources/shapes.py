"""Images of `tp_jax.worlds.shapes` with captions, rendered on demand."""

import dataclasses
from typing import Any

import numpy as np

from tp_jax.data.source import Decode, Source
from tp_jax.worlds.shapes.render import render
from tp_jax.worlds.shapes.scenes import Scene, training_scene

# Number of distinct examples: the most that Grain shuffles, and more than any training reads.
COUNT = 2**31


@dataclasses.dataclass(frozen=True)
class _Scenes:
    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> Scene:
        return training_scene(int(index))


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
    condition_kind = "caption"

    def decoder(self, size: int, flip: bool) -> Decode:
        """Return the renderer; `flip` is ignored, because captions contain left and right."""
        return DecodeScene(size)


def open_shapes(dir: str, split: str, section: str) -> Source:
    """Open the training scenes; the arguments are ignored."""
    return _ShapesSource(_Scenes(), image_size=None, channels=3, class_names=())

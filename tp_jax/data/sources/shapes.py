"""Pictures of `tp_jax.worlds.shapes` with captions, rendered on demand without a data set."""

import dataclasses
from typing import Any

import numpy as np

from tp_jax.data.source import Decode, Source
from tp_jax.worlds.shapes.render import render
from tp_jax.worlds.shapes.scenes import Scene, training_scene

# So many can be shuffled; no training sees them all.
COUNT = 2**31


@dataclasses.dataclass(frozen=True)
class _Scenes:
    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> Scene:
        return training_scene(int(index))


@dataclasses.dataclass(frozen=True)
class DecodeScene:
    """Scene -> {"x": [S, S, 3] float32 in [-1, 1], "condition": {"caption": str}}.

    Attributes:
      size: side S.
    """

    size: int

    def __call__(self, scene: Scene, rng: np.random.Generator) -> dict[str, Any]:
        """Renders; nothing is drawn at random any more."""
        x = 2 * render(scene, self.size) - 1
        return {"x": x, "condition": {"caption": scene.caption}}


class _ShapesSource(Source):
    gives = "caption"

    def decoder(self, size: int, flip: bool) -> Decode:
        """Never mirrored, because captions say left and right."""
        return DecodeScene(size)


def open_shapes(dir: str, split: str, section: str) -> Source:
    """The training pictures; the arguments have no meaning here and are ignored."""
    return _ShapesSource(_Scenes(), image_size=None, channels=3, class_names=())

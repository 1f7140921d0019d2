"""Random images that need no disk, for trying a config out and for timing."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from tp_jax.data.source import Decode, Source

COUNT = 65_536


@dataclasses.dataclass(frozen=True)
class _Noise(Sequence):
    size: int
    channels: int
    num_classes: int

    def __len__(self):
        return COUNT

    def __getitem__(self, index):
        shape = (self.size, self.size, self.channels)
        x = np.random.default_rng(index).standard_normal(shape, np.float32)
        return {"x": x, "condition": {"label": np.int32(index % self.num_classes)}}


class _SyntheticSource(Source):
    pixels = False

    def decoder(self, size: int, flip: bool) -> Decode:
        return _as_it_is


def _as_it_is(record, rng):
    return record


def make_synthetic(size: int, channels: int, num_classes: int) -> Source:
    """Gaussian images [size, size, channels] float32 with labels that go round."""
    names = tuple(str(label) for label in range(max(num_classes, 1)))
    return _SyntheticSource(_Noise(size, channels, len(names)), size, channels, names)

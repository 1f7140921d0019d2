"""Gaussian noise in place of images or latents, to try a config or measure speed without data."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from tp_jax import config as config_lib
from tp_jax.data.source import SEEN, Decode, Source

COUNT = 65_536


@dataclasses.dataclass(frozen=True)
class _Noise:
    shape: tuple[int, ...]
    condition: Callable[[int, np.random.Generator], dict[str, Any]]
    # What the seed of an example has beside its index: () in training.
    seed: tuple[int, ...] = ()

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng([index, *self.seed])
        x = rng.standard_normal(self.shape, np.float32)
        return {"x": x, "condition": self.condition(index, rng)}


@dataclasses.dataclass(frozen=True)
class _Labels:
    num_classes: int

    def __call__(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        return {"label": np.int32(index % self.num_classes)}


@dataclasses.dataclass(frozen=True)
class _Text:
    tokens: int
    width: int
    pooled_width: int

    def __call__(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        text = rng.standard_normal((self.tokens, self.width), np.float32)
        pooled = rng.standard_normal(self.pooled_width, np.float32)
        null = {"null_text": np.zeros_like(text), "null_pooled": np.zeros_like(pooled)}
        return {"text": text, "pooled": pooled, **null}


class _SyntheticSource(Source):
    records: _Noise
    pixels = False

    def decoder(self, size: int, flip: bool) -> Decode:
        return return_record

    def validation_sources(self, seed: int) -> dict[str, Source]:
        noise = dataclasses.replace(self.records, seed=(1 + seed,))
        return {SEEN: dataclasses.replace(self, records=noise)}


class _SyntheticText(_SyntheticSource):
    condition_kind = "text"


def return_record(record: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """Return the record unchanged: the decoder of sources whose records are examples already."""
    return record


def make_synthetic(config: ConfigDict) -> Source:
    """Make a source of Gaussian noise [S, S, C] float32 with the shape of `config.model`.

    Labels cycle through the classes. For a model that takes text, the encoded text is Gaussian
    noise too.
    """
    model = config_lib.model_config(config)
    shape = (model.image_size, model.image_size, model.channels)
    if model.text is None:
        names = tuple(str(label) for label in range(max(model.classes, 1)))
        noise = _Noise(shape, _Labels(len(names)))
        return _SyntheticSource(noise, model.image_size, model.channels, names)
    text = _Text(model.text.tokens, model.text.width, model.text.pooled_width)
    return _SyntheticText(_Noise(shape, text), model.image_size, model.channels, ())

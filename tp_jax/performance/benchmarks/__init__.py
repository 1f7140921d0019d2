"""The registry of benchmarks, one file each; performance/README.md says how to add one.

This module doesn't import jax, so that --help and flag errors are quick.
"""

import importlib
from collections.abc import Callable, Iterator
from typing import Any

# name, which is also that of the module -> what it measures
BENCHMARKS: dict[str, str] = {
    "train": "train steps: all weights, thinking only, plain LoRA",
    "forward": "the forward pass",
    "sample": "sampling with guidance",
    "dispatch": "train steps of thinking only, each dispatch over M and over T",
    "attention": "each implementation of attention, in train steps and forward passes",
    "data": "the data pipeline, alone and in training",
    "checkpoint": "saving and restoring, and how long training waits for them",
    "startup": "imports, tracing, compiling with and without the cache",
    "prepare": "from JPEG to latents",
    "evaluate": "from images to the statistics of FID, sFID and Inception Score",
}
# Measured if --what isn't given.
DEFAULT = ("train", "forward")


def find_groups(name: str) -> Callable[[Any], Iterator[Any]]:
    """Return `groups` of a benchmark: BenchOptions -> groups of contenders."""
    return importlib.import_module(f"{__name__}.{name}").groups

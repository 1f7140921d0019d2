"""Random weights from a seed, so that a golden file of a large model needs to hold none."""

from collections.abc import Mapping

import numpy as np


def seeded_weights(
    shapes: Mapping[str, tuple[int, ...]], seed: int, gain: float = 1.0
) -> dict[str, np.ndarray]:
    """Weights float32 for a torch state dict, drawn key by key in sorted order.

    By the last part of the key: "running_var" is uniform in 0.5 … 1.5, "running_mean" and "bias"
    normal with deviation 0.1, "num_batches_tracked" 0 (int64). Of the rest, vectors (the gains of
    norms) are normal around 1 with deviation 0.2, label tables have deviation 0.5, and matrices
    and kernels gain/√fan_in.

    Args:
      shapes: of every entry of the state dict.
      gain: 1, or √2 to keep the variance of a network of ReLUs.
    """
    random = np.random.RandomState(seed)
    weights = {}
    for key in sorted(shapes):
        shape, name = tuple(shapes[key]), key.split(".")[-1]
        if name == "num_batches_tracked":
            weights[key] = np.zeros(shape, np.int64)
            continue
        if name == "running_var":
            weights[key] = random.uniform(0.5, 1.5, shape).astype(np.float32)
            continue
        if name in ("running_mean", "bias"):
            mean, std = 0.0, 0.1
        elif len(shape) == 1:
            mean, std = 1.0, 0.2
        elif "embedding_table" in key:
            mean, std = 0.0, 0.5
        else:
            mean, std = 0.0, gain * np.prod(shape[1:]) ** -0.5
        weights[key] = (mean + std * random.randn(*shape)).astype(np.float32)
    return weights


def seeded_images(seed: int, batch: int, side: int, block: int) -> np.ndarray:
    """Images [B, 3, side, side] float32 in [-1, 1]: squares of one colour, and a little noise.

    Args:
      block: pixels a side of a square; divides `side`.
    """
    random = np.random.RandomState(seed)
    squares = random.uniform(-0.9, 0.9, (batch, 3, side // block, side // block))
    noise = random.uniform(-0.1, 0.1, (batch, 3, side, side))
    return (squares.repeat(block, axis=2).repeat(block, axis=3) + noise).astype(np.float32)

"""Seeded random weights, so that the golden file of a large model needn't store them."""

from collections.abc import Mapping

import numpy as np


def seeded_weights(
    shapes: Mapping[str, tuple[int, ...]], seed: int, gain: float = 1.0
) -> dict[str, np.ndarray]:
    """Sample float32 weights for a torch state dict, key by key in sorted order.

    The last part of a key decides: "running_var" is uniform in 0.5 … 1.5, "running_mean" and "bias"
    are normal with standard deviation 0.1, and "num_batches_tracked" is 0 (int64). Other vectors
    (scales of norms) are normal with mean 1 and deviation 0.2. Label tables have deviation 0.5,
    matrices and kernels gain/√fan_in.

    Args:
      shapes: the shape of every entry of the state dict.
      seed: of NumPy's RandomState.
      gain: 1, or √2 to preserve the variance in a network of ReLUs.
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
    """Sample images [B, 3, side, side] float32 in [-1, 1]: coloured squares with a little noise.

    Args:
      block: side of a square in pixels, a divisor of `side`.
    """
    random = np.random.RandomState(seed)
    squares = random.uniform(-0.9, 0.9, (batch, 3, side // block, side // block))
    noise = random.uniform(-0.1, 0.1, (batch, 3, side, side))
    return (squares.repeat(block, axis=2).repeat(block, axis=3) + noise).astype(np.float32)

"""Seeded random features and images, the inputs of the golden scores and of their tests."""

import numpy as np

WIDTH, CLASSES = 2048, 1008
HIDDEN = 32  # number of dimensions with most of the variance


def features(seed: int, rows: int, shift: float = 0.0, width: int = WIDTH) -> np.ndarray:
    """Non-negative features [rows, width] float32, distributed roughly like Inception features."""
    fixed, random = np.random.RandomState(99), np.random.RandomState(seed)
    scale = 0.35 / np.sqrt(np.arange(1, HIDDEN + 1))
    mix = fixed.standard_normal((HIDDEN, width)) * scale[:, None]
    hidden = random.standard_normal((rows, HIDDEN)) + shift
    noise = 0.05 * random.standard_normal((rows, width))
    return np.maximum(0.3 + hidden @ mix + noise, 0).astype(np.float32)


def class_weights() -> np.ndarray:
    """The matrix [WIDTH, CLASSES] float32 that maps features to logits."""
    return (0.1 * np.random.RandomState(98).standard_normal((WIDTH, CLASSES))).astype(np.float32)


# Heights and widths of the images that are resized to 299×299.
SIZES = ((32, 48), (256, 256), (400, 311))


def image(height: int, width: int) -> np.ndarray:
    """A noise image [height, width, 3] uint8."""
    random = np.random.RandomState(height * 1000 + width)
    return random.randint(0, 256, (height, width, 3)).astype(np.uint8)

"""scikit-learn's digits: 1,797 scanned 8×8 grey images of 10 classes, included in the package."""

from typing import Any

import numpy as np

from tp_jax.data.source import Source


def open_digits(dir: str, split: str, section: str) -> Source:
    """Open all digits as arrays of pixels; the arguments are ignored."""
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    # scikit-learn's pixel values are integers from 0 to 16.
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    records = [
        {"image": image, "label": int(label)}
        for image, label in zip(images, digits.target, strict=True)
    ]
    names = tuple(str(name) for name in digits.target_names)
    return Source(records, image_size=8, channels=1, class_names=names)

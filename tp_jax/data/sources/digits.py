"""scikit-learn's digits: 1,797 real 8×8 scans of 10 classes, in the package itself."""

import io
from typing import Any

import numpy as np
from PIL import Image

from tp_jax.data.source import Source


def open_digits(dir: str, split: str, section: str) -> Source:
    """All scans, as PNG; the arguments have no meaning here and are ignored."""
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    # Scans count 0 to 16 dark pixels in each cell.
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    records = [
        {"image": _png(image), "label": int(label)}
        for image, label in zip(images, digits.target, strict=True)
    ]
    names = tuple(str(name) for name in digits.target_names)
    return Source(records, image_size=8, channels=1, class_names=names)


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="png")
    return buffer.getvalue()

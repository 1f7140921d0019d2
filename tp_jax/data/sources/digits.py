"""scikit-learn's digits: 1,797 scanned 8×8 grey images of 10 classes, included in the package."""

import importlib.util
import pathlib

import numpy as np

from tp_jax.data.source import Source


def open_digits(dir: str, split: str, section: str) -> Source:
    """Open all digits as arrays of pixels; the arguments are ignored."""
    # `sklearn.datasets.load_digits` reads the same file, but importing it takes 5 seconds.
    package = importlib.util.find_spec("sklearn")
    assert package and package.origin
    rows = np.loadtxt(
        pathlib.Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=","
    )
    # 64 pixel values, which are integers from 0 to 16, and the class.
    images = np.round(rows[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    records = [
        {"image": image, "label": int(label)}
        for image, label in zip(images, rows[:, -1], strict=True)
    ]
    names = tuple(str(number) for number in range(10))
    return Source(records, image_size=8, channels=1, class_names=names)

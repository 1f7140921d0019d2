"""Grey images in two classes, dark and bright."""

import io

import numpy as np
from PIL import Image

from tp_jax.data.source import Source
from tp_jax.data.sources import SourceKind

GREYS = (40, 210)


def open_greys(dir, split, section):
    def png(value):
        buffer = io.BytesIO()
        Image.fromarray(np.full((8, 8), value, np.uint8)).save(buffer, format="png")
        return buffer.getvalue()

    records = [{"image": png(GREYS[i % 2]), "label": i % 2} for i in range(32)]
    return Source(records, image_size=8, channels=1, class_names=("dark", "bright"))


GREY = SourceKind(open_greys)

"""Helpers for the tests of GenEval and DPG-Bench."""

import json
import re

import numpy as np
import pytest
from etils import epath
from PIL import Image

from tp_jax.evals.geneval.rules import Detection
from tp_jax.messages.errors import UserError


def raises_user_error(words):
    """Expect a UserError whose message is one line and contains `words`."""
    return pytest.raises(UserError, match=rf"\A(?=[^\n]*\Z).*{re.escape(words)}")


def write_lines(path, contents):
    """Write a file of JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(content) + "\n" for content in contents))
    return epath.Path(path)


def grey_image(value, size=8):
    """A square RGB image of one grey level."""
    return Image.fromarray(np.full((size, size, 3), value, np.uint8))


CAT = {"class": "cat", "count": 1}
PROMPTS = [
    {"tag": "single_object", "include": [CAT], "prompt": "a photo of a cat"},
    {"tag": "counting", "include": [{"class": "cat", "count": 2}],
     "exclude": [{"class": "cat", "count": 3}], "prompt": "a photo of two cats"},
    {"tag": "colors", "include": [{**CAT, "color": "red"}], "prompt": "a photo of a red cat"},
    {"tag": "position", "prompt": "a photo of a dog left of a cat",
     "include": [CAT, {"class": "dog", "count": 1, "position": ["left of", 0]}]},
]  # fmt: skip


def detections(*boxes, score=0.95):
    """Detections with these boxes (left, top, right, bottom) and one score."""
    return [Detection(np.array(box, np.float32), score) for box in boxes]

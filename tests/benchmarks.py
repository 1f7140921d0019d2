"""What the tests of GenEval and of DPG-Bench share."""

import json
import re

import numpy as np
import pytest
from etils import epath
from PIL import Image

from tp_jax.messages.errors import UserError


def fails(words):
    """A UserError of one line that says `words`."""
    return pytest.raises(UserError, match=rf"\A(?=[^\n]*\Z).*{re.escape(words)}")


def write_lines(path, contents):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(content) + "\n" for content in contents))
    return epath.Path(path)


def grey(value, size=8):
    return Image.fromarray(np.full((size, size, 3), value, np.uint8))

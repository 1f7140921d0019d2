"""Prompts of a drawing, and what the model takes of them."""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np
from etils import epath

from tp_jax.data import check_text
from tp_jax.files.jsonl import read_text
from tp_jax.messages.errors import UserError
from tp_jax.sampling.loaded import ModelOnMesh
from tp_jax.text import TextEncoder, load_encoder
from tp_jax.workdir.record import check_text_space


@dataclasses.dataclass(frozen=True)
class Prompts:
    """Prompts as a model takes them, N of them.

    Attributes:
      texts: themselves.
      conditions: {"text", "pooled", "null_text", "null_pooled"}, each [N, …] float16.
      encoder: identity of what encoded them.
    """

    texts: tuple[str, ...]
    conditions: dict[str, np.ndarray]
    encoder: str


def load_text(loaded: ModelOnMesh) -> TextEncoder:
    """The text encoder that a model was trained with.

    Raises:
      UserError: the model takes classes, or the encoder isn't there or isn't that one.
    """
    model = loaded.built.model
    if model.takes != "text":
        raise UserError(
            f"a {loaded.config.model.kind} model draws classes, not prompts: give --labels"
        )
    encoder = load_encoder(loaded.config.text)
    check_text_space(loaded.workdir, encoder.space)
    check_text(encoder.space, model, f"config.text.encoder={loaded.config.text.encoder!r}")
    return encoder


# Prompts that are encoded at once.
_AT_ONCE = 64


def encode_prompts(
    loaded: ModelOnMesh,
    texts: Sequence[str],
    negative: str = "",
    encoder: TextEncoder | None = None,
) -> Prompts:
    """Encodes prompts, and the one that guidance leads away from, into float16.

    Args:
      encoder: of `load_text`, where it is loaded already.

    Raises:
      UserError: as `load_text`, or there are none, or one is longer than the encoder takes.
    """
    encoder = encoder or load_text(loaded)
    if not texts:
        raise UserError("--prompts is empty: give a prompt, or a file with one on each line")
    for text in (*texts, negative):
        encoder.check(text)
    null = {f"null_{name}": array for name, array in encoder.encode([negative]).items()}
    # Half the memory, and the numbers that training on prepared text saw.
    parts = [
        {
            name: array.astype(np.float16)
            for name, array in encoder.encode(texts[at : at + _AT_ONCE]).items()
        }
        for at in range(0, len(texts), _AT_ONCE)
    ]
    conditions = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    for name, array in null.items():
        shape = (len(texts), *array.shape[1:])
        conditions[name] = np.broadcast_to(array.astype(np.float16), shape)
    return Prompts(tuple(texts), conditions, encoder.space.identity)


def read_prompts(given: str) -> tuple[str, ...]:
    """The lines of a file that are not empty, or, where there is no such file, the text itself.

    Raises:
      UserError: it is a folder, no text, or named like a file that isn't there.
    """
    path = epath.Path(given)
    # A prompt may be longer than a file's name can be.
    if len(given) > 255 or not path.exists():
        if re.fullmatch(r"\S+\.(txt|jsonl?|csv|md)", given):
            raise UserError(f"--prompts={given}: there is no such file")
        return (given,)
    if path.is_dir():
        raise UserError(f"--prompts={given} is a folder: name a file with a prompt on each line")
    return tuple(line.strip() for line in read_text(path).split("\n") if line.strip())

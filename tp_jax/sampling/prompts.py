"""Read prompts, and encode them with the text encoder that the model was trained with."""

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
class EncodedPrompts:
    """N prompts and their embeddings, in the form of the model's condition.

    Attributes:
      texts: the N prompts.
      conditions: {"text", "pooled", "null_text", "null_pooled"}, each [N, …] float16. The null
        entries are the negative prompt, or else the empty one.
      encoder: identity of the text encoder.
    """

    texts: tuple[str, ...]
    conditions: dict[str, np.ndarray]
    encoder: str


def load_text_encoder(loaded: ModelOnMesh) -> TextEncoder:
    """Load the text encoder that a model was trained with.

    Raises:
      UserError: the model is conditioned on classes, the encoder can't be loaded, or it isn't the
        one that the model was trained with.
    """
    model = loaded.built.model
    if model.condition_kind != "text":
        raise UserError(
            f"a {loaded.config.model.kind} model is conditioned on classes, not on prompts: use "
            f"--labels instead of --prompts"
        )
    encoder = load_encoder(loaded.config.text)
    check_text_space(loaded.workdir, encoder.space)
    check_text(encoder.space, model, f"config.text.encoder={loaded.config.text.encoder!r}")
    return encoder


# Prompts per call of the encoder, which bounds the memory that float32 embeddings need.
_ENCODE_BATCH = 64


def encode_prompts(
    loaded: ModelOnMesh,
    texts: Sequence[str],
    negative: str = "",
    encoder: TextEncoder | None = None,
) -> EncodedPrompts:
    """Encode prompts, and the negative prompt of classifier-free guidance, as float16.

    Args:
      texts: the N prompts.
      negative: the negative prompt.
      encoder: the result of `load_text_encoder`, if it is loaded already.

    Raises:
      UserError: `load_text_encoder` fails, there are no prompts, or the encoder refuses a prompt.
    """
    encoder = encoder or load_text_encoder(loaded)
    if not texts:
        raise UserError("--prompts is empty: give a prompt, or a file with one prompt per line")
    for text in (*texts, negative):
        encoder.check(text)
    null = {f"null_{name}": array for name, array in encoder.encode([negative]).items()}
    # float16 halves the memory, and is the dtype that prepared training data has.
    batches = [
        {
            name: array.astype(np.float16)
            for name, array in encoder.encode(texts[start : start + _ENCODE_BATCH]).items()
        }
        for start in range(0, len(texts), _ENCODE_BATCH)
    ]
    conditions = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    for name, array in null.items():
        shape = (len(texts), *array.shape[1:])
        conditions[name] = np.broadcast_to(array.astype(np.float16), shape)
    return EncodedPrompts(tuple(texts), conditions, encoder.space.identity)


def read_prompts(given: str) -> tuple[str, ...]:
    """Return the non-empty lines of a file, or the argument itself if it isn't the name of a file.

    Args:
      given: the value of --prompts.

    Raises:
      UserError: it names a folder, a file that isn't text, or a text file that doesn't exist.
    """
    path = epath.Path(given)
    # The file system raises an error for names that are too long, which prompts may be.
    if len(given) > 255 or not path.exists():
        if re.fullmatch(r"\S+\.(txt|jsonl?|csv|md)", given):
            raise UserError(f"--prompts={given}: there is no such file")
        return (given,)
    if path.is_dir():
        raise UserError(f"--prompts={given} is a folder: give a file with one prompt per line")
    return tuple(line.strip() for line in read_text(path).split("\n") if line.strip())

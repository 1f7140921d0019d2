"""Read prompts, and encode them with the text encoder that the model was trained with."""

import dataclasses
import pathlib
import re
from collections.abc import Sequence

import numpy as np
from etils import epath

from tp_jax.data import check_text
from tp_jax.files.jsonl import read_text
from tp_jax.messages.errors import UserError
from tp_jax.sampling.loaded import ModelOnMesh
from tp_jax.text import TextEncoder, load_encoder
from tp_jax.values.texts import read_path
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
    check_prompts(encoder, texts, negative)
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


def check_prompts(encoder: TextEncoder, texts: Sequence[str], negative: str) -> None:
    """Raise a UserError if the encoder refuses a prompt or the negative prompt."""
    for text in (*texts, negative):
        encoder.check(text)


def read_prompts(given: str) -> tuple[str, ...]:
    """Return the non-empty lines of a file, or the argument itself if it is a prompt.

    Args:
      given: the value of --prompts.

    Raises:
      UserError: it is empty, names a folder, a file without prompts, or a file that isn't text; or
        it looks like the name of a file, and there is no such file.
    """
    if not given.strip():
        raise UserError("--prompts is empty: give a prompt, or a file with one prompt per line")
    path = _existing(given)
    if path is None:
        if _looks_like_a_path(given):
            raise UserError(
                f"--prompts={given}: there is no such file; if it is a prompt, write it into a "
                f"file with one prompt per line and give that"
            )
        return (given,)
    if path.is_dir():
        raise UserError(f"--prompts={given} is a folder: give a file with one prompt per line")
    prompts = tuple(line.strip() for line in read_text(path).split("\n") if line.strip())
    if not prompts:
        raise UserError(f"--prompts={given} is empty: write one prompt per line")
    return prompts


def check_is_text(name: str, given: str) -> None:
    """Raise a UserError if a flag that takes a text is set to the name of a file.

    Args:
      name: the flag, such as "negative_prompt".
      given: its value.
    """
    if given and (_looks_like_a_path(given) or _existing(given)):
        raise UserError(f"--{name}={given} looks like a file: give the text itself")


def _existing(text: str) -> epath.Path | None:
    """Return the file or folder that a text names; None if it doesn't name one."""
    try:
        path = epath.Path(read_path(text))
        return path if path.exists() else None
    # A prompt needn't be a valid path, and a scheme such as s3:// may not be supported.
    except (OSError, ValueError, ImportError, KeyError):
        return None


# Endings of files that people keep prompts in.
_TEXT_FILE = re.compile(
    r"\.(txt|text|jsonl?|csv|tsv|md|rst|ya?ml|toml|list|lst|prompts?|log|rtf|docx?|pdf|xlsx?|dat|html?"
    r"|xml|parquet|arrow|pkl|npy|npz|zip|gz|bz2|xz|zst|tar|tgz)$",
    re.IGNORECASE,
)
# A longer text that ends like a file is a prompt: "a sign that says readme.txt".
_FILE_NAME_WORDS = 4


def _looks_like_a_path(text: str) -> bool:
    """Return whether a text is more likely the name of a file than a prompt.

    Example:
      >>> [_looks_like_a_path(text) for text in ("my prompts.txt", "~/mine", "gs://b/p", "x/y.z")]
      [True, True, True, True]
      >>> [_looks_like_a_path(text) for text in ("24/7", "and/or", "a photo at f/2.8", "a cat.")]
      [False, False, False, False]
    """
    text, words = text.strip(" \t\n'\""), len(text.split())
    if re.match(r"(~\w*|\.\.?)[/\\]|[A-Za-z]:\\|[a-z0-9]+://\S+$|/\w\S*$", text):
        return True
    if _TEXT_FILE.search(text) and words <= _FILE_NAME_WORDS:
        return True
    if "/" not in text:
        return False
    # An ending begins with a letter, unlike that of "f/2.8".
    if words == 1 and re.search(r"/$|\.[A-Za-z]\w{0,9}$", text):
        return True
    parent = pathlib.PurePosixPath(text).parent
    return str(parent) not in (".", "/") and _existing(str(parent)) is not None

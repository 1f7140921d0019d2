"""Text encoders by the name that `config.text.encoder` gives them; a new one is one line here."""

from collections.abc import Callable

from ml_collections import ConfigDict

from tp_jax.messages.errors import UserError
from tp_jax.text.encoder import TextEncoder, TextSpace, ZeroNull
from tp_jax.text.sd3 import load_sd3_encoder
from tp_jax.text.words import WordEncoder
from tp_jax.worlds.shapes.scenes import LONGEST, WORDS


def _load_sd3(config: ConfigDict) -> TextEncoder:
    if not config.path:
        raise UserError(
            "config.text.path is empty: name a folder laid out as diffusers' repository of SD3, "
            "with its text encoders and tokenizers"
        )
    fields = ("t5", "clip_tokens", "t5_tokens", "truncate", "dtype")
    return load_sd3_encoder(config.path, **{name: config[name] for name in fields})


# Name -> what loads it from `config.text`.
ENCODERS: dict[str, Callable[[ConfigDict], TextEncoder]] = {
    "shapes": lambda config: WordEncoder(WORDS, LONGEST),
    "sd3": _load_sd3,
}
# Those that are light enough for the workers that read data.
WITHOUT_WEIGHTS = ("shapes",)


def load_encoder(config: ConfigDict) -> TextEncoder:
    """The text encoder of `config.text`.

    Raises:
      UserError: it is unknown, or its weights aren't there.
    """
    if config.encoder not in ENCODERS:
        raise UserError(
            f"config.text.encoder={config.encoder!r}: choose one of {', '.join(ENCODERS)}"
        )
    encoder = ENCODERS[config.encoder](config)
    return ZeroNull(encoder) if config.null == "zeros" else encoder


__all__ = ["ENCODERS", "WITHOUT_WEIGHTS", "TextEncoder", "TextSpace", "load_encoder"]

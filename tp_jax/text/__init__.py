"""Text encoders, and the registry `ENCODERS` that `config.text.encoder` chooses from."""

from collections.abc import Callable

from ml_collections import ConfigDict

from tp_jax.messages.errors import UserError
from tp_jax.text.encoder import TextEncoder, TextSpace, ZeroNullEncoder
from tp_jax.text.sd3 import load_sd3_encoder
from tp_jax.text.words import WordEncoder
from tp_jax.worlds.shapes.scenes import MAX_WORDS, WORDS


def _load_sd3(config: ConfigDict) -> TextEncoder:
    if not config.path:
        raise UserError(
            "config.text.path is empty: give the folder of a Stable Diffusion 3 repository in "
            "diffusers' layout, with its text encoders and tokenizers"
        )
    fields = ("t5", "clip_tokens", "t5_tokens", "truncate", "dtype")
    return load_sd3_encoder(config.path, **{name: config[name] for name in fields})


# config.text.encoder -> function that builds the encoder from `config.text`.
ENCODERS: dict[str, Callable[[ConfigDict], TextEncoder]] = {
    "shapes": lambda config: WordEncoder(WORDS, MAX_WORDS),
    "sd3": _load_sd3,
}
# Encoders that the data workers can run during training, because they have no weights.
WITHOUT_WEIGHTS = ("shapes",)


def load_encoder(config: ConfigDict) -> TextEncoder:
    """Load the text encoder that `config.text` describes.

    Raises:
      UserError: the name isn't in `ENCODERS`, or the encoder's weights can't be loaded.
    """
    if config.encoder not in ENCODERS:
        raise UserError(
            f"config.text.encoder={config.encoder!r}: choose one of {', '.join(ENCODERS)}"
        )
    encoder = ENCODERS[config.encoder](config)
    return ZeroNullEncoder(encoder) if config.null == "zeros" else encoder


__all__ = ["ENCODERS", "WITHOUT_WEIGHTS", "TextEncoder", "TextSpace", "load_encoder"]

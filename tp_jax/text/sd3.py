"""The text encoders of Stable Diffusion 3: CLIP-L, OpenCLIP-bigG and T5-XXL, run by transformers.

B prompts, L text tokens. The embeddings equal those of
StableDiffusion3Pipeline.encode_prompt in diffusers.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from tp_jax.files.downloads import check_download, read_downloaded_json
from tp_jax.files.hub import local
from tp_jax.messages.errors import UserError
from tp_jax.messages.progress import say
from tp_jax.text.encoder import TextSpace
from tp_jax.text.published import (
    choose_device,
    import_packages,
    load_published,
    load_tokenizer,
    tokenizer_files,
    weight_files,
)

# (subfolder of the weights, subfolder of the tokenizer, name for messages) of each encoder.
CLIPS = (("text_encoder", "tokenizer", "CLIP-L"), ("text_encoder_2", "tokenizer_2", "CLIP-bigG"))
T5 = ("text_encoder_3", "tokenizer_3", "T5")
# Features per token of SD3's T5-XXL, used where the folder has no config to read them from.
T5_WIDTH = 4096
DTYPES = ("float32", "bfloat16")


def load_sd3_encoder(
    path: epath.PathLike,
    *,
    t5: bool = True,
    clip_tokens: int = 77,
    t5_tokens: int = 77,
    truncate: bool = False,
    dtype: str = "float32",
    batch_size: int = 8,
) -> "SD3TextEncoder":
    """Load SD3's text encoders from a local folder, onto the GPU if torch finds one.

    Args:
      path: a Stable Diffusion 3 repository in diffusers' layout, with the subfolders
        text_encoder, text_encoder_2, tokenizer and tokenizer_2, and for T5 also text_encoder_3
        and tokenizer_3.
      t5: load T5. If False, its tokens are zeros, as in diffusers.
      clip_tokens: tokens that a prompt is padded to for CLIP. Both CLIPs share these tokens:
        their features are concatenated. The published CLIPs accept up to 77.
      t5_tokens: tokens that a prompt is padded to for T5. They follow CLIP's, so
        L = clip_tokens + t5_tokens.
      truncate: cut prompts that are too long, with a warning the first time, instead of raising
        an error.
      dtype: compute dtype of the encoders, "float32" or "bfloat16".
      batch_size: prompts per batch; the last batch is padded to this size.

    Raises:
      UserError: torch or transformers isn't installed; the folder lacks an encoder or a
        tokenizer, or one of them is cut, damaged or of another model; or an encoder doesn't accept
        that many tokens.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype={dtype!r} of the text encoder: choose one of {', '.join(DTYPES)}")
    parts = [*CLIPS, *([T5] if t5 else [])]
    folder = local(path, *(name for part in parts for name in part[:2]))
    for name in (name for part in parts for name in part[:2]):
        if not (folder / name).is_dir():
            raise UserError(
                f"{folder} lacks {name}: set config.text.path (or --text) to a Stable Diffusion 3 "
                f"repository in diffusers' layout"
            )
    _, transformers = import_packages("SD3's text encoder")
    load = functools.partial(_load_encoder, transformers, folder, dtype=dtype)
    clips = [load("CLIPTextModelWithProjection", *part, clip_tokens) for part in CLIPS]
    encoders = clips + ([load("T5EncoderModel", *T5, t5_tokens)] if t5 else [])
    settings = dict(t5=t5, clip_tokens=clip_tokens, t5_tokens=t5_tokens)
    width = int(encoders[-1].model.config.d_model) if t5 else _t5_width(folder)
    space = TextSpace(
        identity=_identity(folder, [name for part in parts for name in part[:2]], settings),
        tokens=clip_tokens + t5_tokens,
        width=width,
        pooled_width=sum(int(clip.model.config.projection_dim) for clip in clips),
    )
    return SD3TextEncoder(space, tuple(encoders), truncate, batch_size)


@dataclasses.dataclass(frozen=True)
class Encoder:
    """One of the three text encoders: its weights and its tokenizer.

    Attributes:
      name: name for messages, such as "CLIP-L".
      model: the transformers model.
      tokenizer: the transformers tokenizer.
      tokens: number of tokens that every prompt is padded to.
    """

    name: str
    model: Any
    tokenizer: Any
    tokens: int

    def length(self, prompt: str) -> int:
        """Return the number of tokens in a prompt, with its start and end tokens."""
        return len(self.tokenizer(prompt, verbose=False)["input_ids"])

    def ids(self, prompts: Sequence[str]) -> Any:
        """Return the token ids of B prompts, a torch tensor [B, tokens]."""
        return self.tokenizer(
            list(prompts),
            padding="max_length",
            max_length=self.tokens,
            truncation=True,
            return_tensors="pt",
        ).input_ids.to(self.model.device)


def _load_encoder(
    transformers: Any,
    folder: epath.Path,
    model_class: str,
    model_folder: str,
    tokenizer_folder: str,
    name: str,
    tokens: int,
    *,
    dtype: str,
) -> Encoder:
    import torch

    try:
        model = load_published(
            getattr(transformers, model_class),
            folder / model_folder,
            name,
            torch_dtype=getattr(torch, dtype),
        )
        tokenizer = load_tokenizer(folder / tokenizer_folder, name, int(model.config.vocab_size))
    except UserError as error:
        raise UserError(f"{name} can't be loaded from {folder}: {error}") from error
    max_tokens = getattr(model.config, "max_position_embeddings", None)
    if tokens < 2 or (max_tokens and tokens > max_tokens):
        bound = f"to {max_tokens}" if max_tokens else "or more"
        raise UserError(
            f"{name} accepts 2 {bound} tokens per prompt, not {tokens}: change "
            f"config.text.clip_tokens or config.text.t5_tokens"
        )
    device = choose_device()
    with _gpu_memory(name):
        model = model.requires_grad_(False).to(device)
    return Encoder(name, model, tokenizer, tokens)


@contextlib.contextmanager
def _gpu_memory(name: str) -> Iterator[None]:
    """Turn torch's out-of-memory error into one that tells the user what to change.

    JAX reserves most of the GPU's memory when it starts, which leaves little for torch.

    Raises:
      UserError: the GPU ran out of memory.
    """
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"{name} doesn't fit into the GPU memory that JAX leaves free: set the environment "
            f"variable XLA_PYTHON_CLIENT_PREALLOCATE=false, config.text.dtype=bfloat16 or "
            f"config.text.t5=false"
        ) from error


@dataclasses.dataclass
class SD3TextEncoder:
    """SD3's text encoders, as `load_sd3_encoder` returns them.

    Attributes:
      space: shape and identity of the embeddings.
      encoders: the two CLIPs and, if loaded, T5.
      truncate: cut prompts that are too long instead of raising an error.
      batch_size: prompts per batch.
    """

    space: TextSpace
    encoders: tuple[Encoder, ...]
    truncate: bool
    batch_size: int
    _warned: bool = False

    def check(self, prompt: str) -> None:
        """Raise a UserError if the prompt is too long for an encoder and `truncate` is off."""
        if not self.truncate:
            for encoder, length in self._too_long(prompt):
                raise UserError(
                    f"the prompt {_short(prompt)} has {length} tokens, but {encoder.name} accepts "
                    f"{encoder.tokens}: shorten it, or cut long prompts with --truncate or "
                    f"config.text.truncate=true"
                )

    def _too_long(self, prompt: str) -> list[tuple[Encoder, int]]:
        lengths = [(encoder, encoder.length(prompt)) for encoder in self.encoders]
        return [(encoder, length) for encoder, length in lengths if length > encoder.tokens]

    def encode(self, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """Encode B prompts.

        The first `clip_tokens` text tokens are the penultimate hidden states of both CLIPs,
        concatenated along the features and padded with zeros to the width of T5. The remaining
        tokens are T5's last hidden states. The pooled embedding is both CLIPs' projections,
        concatenated.

        Returns:
          {"text": [B, L, width], "pooled": [B, pooled_width]}, float32.

        Raises:
          UserError: a prompt is too long and `truncate` is off.
        """
        self._check_all(prompts)
        # All batches have the same size, so that a prompt's embedding doesn't depend on how many
        # prompts are encoded with it.
        padded = [*prompts, *[""] * (-len(prompts) % self.batch_size)]
        batches = [
            self._encode_batch(padded[first : first + self.batch_size])
            for first in range(0, len(padded), self.batch_size)
        ]
        if not batches:
            space = self.space
            text = np.zeros((0, space.tokens, space.width), np.float32)
            return {"text": text, "pooled": np.zeros((0, space.pooled_width), np.float32)}
        return {
            name: np.concatenate([batch[name] for batch in batches])[: len(prompts)]
            for name in ("text", "pooled")
        }

    def _check_all(self, prompts: Sequence[str]) -> None:
        for prompt in prompts:
            self.check(prompt)
        if not self.truncate or self._warned:
            return
        too_long = [found for prompt in prompts if (found := self._too_long(prompt))]
        if too_long:
            self._warned = True
            encoder, length = too_long[0][0]
            say(
                f"warning: {len(too_long)} of {len(prompts)} prompts are cut: the first has "
                f"{length} tokens, but {encoder.name} accepts {encoder.tokens} (later prompts are "
                f"cut without a warning)"
            )

    def _encode_batch(self, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        import torch

        space = self.space
        text = np.zeros((len(prompts), space.tokens, space.width), np.float32)
        pooled, feature = [], 0
        with torch.inference_mode(), _gpu_memory("a batch of prompts"):
            for encoder in self.encoders[:2]:
                out = encoder.model(encoder.ids(prompts), output_hidden_states=True)
                pooled.append(_to_numpy(out.text_embeds))
                hidden = _to_numpy(out.hidden_states[-2])
                text[:, : encoder.tokens, feature : feature + hidden.shape[-1]] = hidden
                feature += hidden.shape[-1]
            for encoder in self.encoders[2:]:
                # Padding tokens are not masked, as in diffusers.
                hidden = encoder.model(encoder.ids(prompts)).last_hidden_state
                text[:, -encoder.tokens :] = _to_numpy(hidden)
        return {"text": text, "pooled": np.concatenate(pooled, axis=-1)}


def _to_numpy(tensor: Any) -> np.ndarray:
    return tensor.float().cpu().numpy()


def _short(prompt: str) -> str:
    return repr(prompt if len(prompt) <= 60 else prompt[:57] + "…")


def _t5_width(folder: epath.Path) -> int:
    """Return the features per token that T5 would have, without loading it."""
    for subfolder, key in (("text_encoder_3", "d_model"), ("transformer", "joint_attention_dim")):
        path = folder / subfolder / "config.json"
        if path.exists():
            check_download(path)
            try:
                return int(read_downloaded_json(path)[key])
            except (KeyError, TypeError, ValueError):
                raise UserError(f"{path} has no number {key}: download it again") from None
    return T5_WIDTH


def _identity(folder: epath.Path, parts: Sequence[str], settings: dict[str, Any]) -> str:
    """Return the SHA-256 of the settings and of the weight, config and tokenizer files.

    The dtype is left out: it changes the embeddings only by rounding.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for part in parts:
        if part.startswith("text_encoder"):
            files = [folder / part / "config.json", *weight_files(folder / part)[1]]
        else:
            files = tokenizer_files(folder / part)
        for path in sorted(files):
            digest.update(f"\n{part}/{path.name} {path.stat().length}\n".encode())
            with path.open("rb") as file:
                while block := file.read(1 << 24):
                    digest.update(block)
    return digest.hexdigest()

"""The text encoders of Stable Diffusion 3: CLIP-L, OpenCLIP-bigG and T5-XXL, run by transformers.

B prompts, L text tokens. Numbers as diffusers' StableDiffusion3Pipeline.encode_prompt.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from tp_jax.messages.errors import UserError
from tp_jax.messages.progress import say
from tp_jax.text.encoder import TextSpace

# Subfolders of the encoder and its tokenizer, and the encoder's name to a person.
CLIPS = (("text_encoder", "tokenizer", "CLIP-L"), ("text_encoder_2", "tokenizer_2", "CLIP-bigG"))
T5 = ("text_encoder_3", "tokenizer_3", "T5")
# Of SD3's T5, for a folder that doesn't tell.
WIDTH = 4096
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
    """Loads SD3's text encoders from a local folder, onto a GPU if torch has one.

    Args:
      path: a folder laid out as diffusers' repository of SD3: text_encoder, text_encoder_2,
        tokenizer and tokenizer_2 and, for T5, text_encoder_3 and tokenizer_3.
      t5: with T5; without, its tokens are zeros, as in diffusers.
      clip_tokens: text tokens of each CLIP, which share them; the published ones take 77.
      t5_tokens: text tokens of T5, after CLIP's: L = clip_tokens + t5_tokens.
      truncate: cuts a prompt that is longer, and says so once, rather than refuse it.
      dtype: that the encoders compute in, "float32" or "bfloat16".
      batch_size: prompts that are encoded at once, whatever number there is.

    Raises:
      UserError: torch or transformers isn't installed, the folder lacks an encoder or a
        tokenizer, or an encoder can't have so many tokens.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype={dtype!r} of the text encoder: choose one of {', '.join(DTYPES)}")
    folder, parts = epath.Path(path), [*CLIPS, *([T5] if t5 else [])]
    for name in (name for part in parts for name in part[:2]):
        if not (folder / name).is_dir():
            raise UserError(
                f"{folder} lacks {name}: give a folder laid out as diffusers' repository of SD3, "
                f"in config.text.path (--text)"
            )
    try:
        import torch  # noqa: F401
        import transformers
    except ImportError as error:
        raise UserError(
            f"SD3's text encoders need {error.name}: pip install -e '.[text]'"
        ) from error
    load = functools.partial(_load_tower, transformers, folder, dtype=dtype)
    clips = [load("CLIPTextModelWithProjection", *part, clip_tokens) for part in CLIPS]
    towers = clips + ([load("T5EncoderModel", *T5, t5_tokens)] if t5 else [])
    settings = dict(t5=t5, clip_tokens=clip_tokens, t5_tokens=t5_tokens)
    width = int(towers[-1].model.config.d_model) if t5 else _width(folder)
    space = TextSpace(
        identity=_identity(folder, [name for part in parts for name in part[:2]], settings),
        tokens=clip_tokens + t5_tokens,
        width=width,
        pooled_width=sum(int(tower.model.config.projection_dim) for tower in clips),
    )
    return SD3TextEncoder(space, tuple(towers), truncate, batch_size)


@dataclasses.dataclass(frozen=True)
class Tower:
    """One of the encoders.

    Attributes:
      name: as a person knows it.
      tokens: that a prompt is padded to.
    """

    name: str
    model: Any
    tokenizer: Any
    tokens: int

    def length(self, prompt: str) -> int:
        """Tokens of a prompt, with those that begin and end it."""
        return len(self.tokenizer(prompt, verbose=False)["input_ids"])

    def ids(self, prompts: Sequence[str]) -> Any:
        """Torch integers [B, tokens]."""
        return self.tokenizer(
            list(prompts),
            padding="max_length",
            max_length=self.tokens,
            truncation=True,
            return_tensors="pt",
        ).input_ids.to(self.model.device)


def _load_tower(
    transformers: Any,
    folder: epath.Path,
    cls: str,
    encoder: str,
    tokenizer: str,
    name: str,
    tokens: int,
    *,
    dtype: str,
) -> Tower:
    import torch

    variant, _ = _weight_files(folder / encoder)
    try:
        model = getattr(transformers, cls).from_pretrained(
            str(folder / encoder),
            torch_dtype=getattr(torch, dtype),
            variant=variant,
            use_safetensors=True,
            local_files_only=True,
        )
        tokens_of = transformers.AutoTokenizer.from_pretrained(
            str(folder / tokenizer), local_files_only=True
        )
    except ImportError as error:
        raise UserError(
            f"SD3's text encoders need {error.name or error}: pip install -e '.[text]'"
        ) from error
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0][:200]
        raise UserError(f"{name} can't be loaded from {folder}: {reason}; get it anew") from error
    places = getattr(model.config, "max_position_embeddings", None)
    if tokens < 2 or (places and tokens > places):
        raise UserError(f"{name} takes 2 to {places or 'any number of'} tokens, not {tokens}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with _gpu_memory(name):
        model = model.eval().requires_grad_(False).to(device)
    return Tower(name, model, tokens_of, tokens)


@contextlib.contextmanager
def _gpu_memory(name: str) -> Iterator[None]:
    """Says what to do where JAX, which takes most of a GPU's memory at its start, left too little.

    Raises:
      UserError: the GPU's memory is full.
    """
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"{name} doesn't fit into the GPU beside JAX: set XLA_PYTHON_CLIENT_PREALLOCATE=false "
            f"or config.text.dtype=bfloat16, or config.text.t5=false"
        ) from error


@dataclasses.dataclass
class SD3TextEncoder:
    """SD3's text encoders, of `load_sd3_encoder`.

    Attributes:
      space: what they encode into.
      towers: the two CLIPs and, unless its tokens are zeros, T5.
    """

    space: TextSpace
    towers: tuple[Tower, ...]
    truncate: bool
    batch_size: int
    _said: bool = False

    def check(self, prompt: str) -> None:
        """Raises a UserError if the prompt is longer than an encoder takes and isn't to be cut."""
        if not self.truncate:
            for tower, length in self._too_long(prompt):
                raise UserError(
                    f"the prompt {_short(prompt)} has {length} tokens, {tower.name} takes "
                    f"{tower.tokens}: shorten it, or cut such prompts with --truncate or "
                    f"config.text.truncate=true"
                )

    def _too_long(self, prompt: str) -> list[tuple[Tower, int]]:
        lengths = [(tower, tower.length(prompt)) for tower in self.towers]
        return [(tower, length) for tower, length in lengths if length > tower.tokens]

    def encode(self, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """{"text": [B, L, width], "pooled": [B, pooled_width]} float32.

        Text is both CLIPs' last hidden states but one, joined by feature and padded by zeros to
        the width of T5, then T5's; pooled is both CLIPs' projections.

        Raises:
          UserError: as `check`.
        """
        self._check_all(prompts)
        # Batches of one size, filled up, so that a prompt's batch-mates don't move its numbers.
        filled = [*prompts, *[""] * (-len(prompts) % self.batch_size)]
        batches = [
            self._encode_batch(filled[first : first + self.batch_size])
            for first in range(0, len(filled), self.batch_size)
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
        if not self.truncate or self._said:
            return
        cut = [found for prompt in prompts if (found := self._too_long(prompt))]
        if cut:
            self._said = True
            tower, length = cut[0][0]
            say(
                f"prompts are cut, {len(cut)} of these {len(prompts)}: the first has {length} "
                f"tokens, {tower.name} takes {tower.tokens} (said once)"
            )

    def _encode_batch(self, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        import torch

        space = self.space
        text = np.zeros((len(prompts), space.tokens, space.width), np.float32)
        pooled, feature = [], 0
        with torch.inference_mode(), _gpu_memory("a batch of prompts"):
            for tower in self.towers[:2]:
                out = tower.model(tower.ids(prompts), output_hidden_states=True)
                pooled.append(_to_numpy(out.text_embeds))
                hidden = _to_numpy(out.hidden_states[-2])
                text[:, : tower.tokens, feature : feature + hidden.shape[-1]] = hidden
                feature += hidden.shape[-1]
            for tower in self.towers[2:]:
                # As in diffusers, the padding isn't masked.
                hidden = tower.model(tower.ids(prompts)).last_hidden_state
                text[:, -tower.tokens :] = _to_numpy(hidden)
        return {"text": text, "pooled": np.concatenate(pooled, axis=-1)}


def _to_numpy(tensor: Any) -> np.ndarray:
    return tensor.float().cpu().numpy()


def _short(prompt: str) -> str:
    return repr(prompt if len(prompt) <= 60 else prompt[:57] + "…")


def _weight_files(folder: epath.Path) -> tuple[str | None, list[epath.Path]]:
    """The variant that transformers is to load, and the files that it then reads."""
    for variant in (None, "fp16"):
        dot = f".{variant}" if variant else ""
        for index in (
            folder / f"model.safetensors.index{dot}.json",
            folder / f"model{dot}.safetensors.index.json",
        ):
            if index.exists():
                shards = re.findall(r'"([^"]+\.safetensors)"', index.read_text())
                return variant, [folder / name for name in sorted(set(shards))]
        whole = folder / f"model{dot}.safetensors"
        if whole.exists():
            return variant, [whole]
    raise UserError(f"{folder} holds no model.safetensors: get the encoder as .safetensors files")


def _width(folder: epath.Path) -> int:
    """Features that T5's tokens would have."""
    for place, key in (("text_encoder_3", "d_model"), ("transformer", "joint_attention_dim")):
        path = folder / place / "config.json"
        if path.exists():
            return int(json.loads(path.read_text())[key])
    return WIDTH


def _identity(folder: epath.Path, parts: Sequence[str], settings: dict[str, Any]) -> str:
    """SHA-256 of what decides the embeddings, but for their rounding.

    That is the settings, and the bytes of the weights, configs and tokenizers.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for part in parts:
        files = [path for path in (folder / part).iterdir() if path.suffix in (".txt", ".json")]
        files += (folder / part).glob("*.model")
        if part.startswith("text_encoder"):
            files = [folder / part / "config.json", *_weight_files(folder / part)[1]]
        for path in sorted(files):
            digest.update(f"\n{part}/{path.name} {path.stat().length}\n".encode())
            with path.open("rb") as file:
                while block := file.read(1 << 24):
                    digest.update(block)
    return digest.hexdigest()

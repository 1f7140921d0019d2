"""Write tiny text encoders and tokenizers in the folder layout of diffusers' SD3 repository.

Needs torch, transformers and tokenizers. The weights are random with fixed seeds.
"""

import json
import pathlib
import string
from collections.abc import Callable, Mapping

import numpy as np
import tokenizers
import torch
import transformers

WORDS = ("a", "red", "cube", "on", "the", "blue", "ball", "cat")
CLIP_START, CLIP_END = "<|startoftext|>", "<|endoftext|>"
T5_WIDTH = 48
# The second prompt is empty; the third has words that the vocabulary lacks.
PROMPTS = ("a red cube on the blue ball", "", "zebra, cat")


def write_repository(folder: pathlib.Path, draw: Callable[..., Mapping[str, np.ndarray]]) -> None:
    """Write the encoders and tokenizers into a folder.

    Args:
      folder: where to write.
      draw: the function `seeded_weights` of `seeded.py`.
    """
    words = clip_vocabulary()[0]
    clip = dict(
        vocab_size=len(words),
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=words[CLIP_START],
        eos_token_id=words[CLIP_END],
        pad_token_id=words[CLIP_END],
    )
    for name, seed, width, act in (
        ("text_encoder", 80, 16, "quick_gelu"),
        ("text_encoder_2", 81, 24, "gelu"),
    ):
        config = transformers.CLIPTextConfig(
            **clip,
            hidden_size=width,
            intermediate_size=2 * width,
            projection_dim=width,
            num_hidden_layers=3,
            hidden_act=act,
        )
        _save(transformers.CLIPTextModelWithProjection(config), folder / name, seed, draw)
    t5 = transformers.T5Config(
        vocab_size=len(t5_pieces()),
        d_model=T5_WIDTH,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    _save(transformers.T5EncoderModel(t5), folder / "text_encoder_3", 82, draw)
    _write_clip_tokenizer(folder / "tokenizer", CLIP_END)
    _write_clip_tokenizer(folder / "tokenizer_2", "!")
    _write_t5_tokenizer(folder / "tokenizer_3")


def _save(model, folder, seed, draw):
    shapes = {
        key: tuple(tensor.shape)
        for key, tensor in model.state_dict().items()
        # This key is tied to shared.weight.
        if key != "encoder.embed_tokens.weight"
    }
    state = {key: torch.from_numpy(array) for key, array in draw(shapes, seed).items()}
    model.load_state_dict(state, strict=False)
    model.save_pretrained(folder)


def clip_vocabulary() -> tuple[dict[str, int], list[str]]:
    """The vocabulary (token to id), and the BPE merges from letters to words."""
    letters = ["!", ",", *string.ascii_lowercase]
    tokens, merges = [*letters, *(f"{letter}</w>" for letter in letters)], []
    for word in WORDS:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            merge = f"{parts[0]} {parts[1]}"
            parts[:2] = [parts[0] + parts[1]]
            if merge not in merges:
                merges.append(merge)
                tokens.append(parts[0])
    return {token: i for i, token in enumerate([*tokens, CLIP_START, CLIP_END])}, merges


def _write_clip_tokenizer(folder, pad):
    folder.mkdir(parents=True)
    vocabulary, merges = clip_vocabulary()
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    special = dict(bos_token=CLIP_START, eos_token=CLIP_END, unk_token=CLIP_END, pad_token=pad)
    config = special | dict(
        tokenizer_class="CLIPTokenizer", model_max_length=77, do_lower_case=True
    )
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").write_text(json.dumps(special))


def t5_pieces() -> list[tuple[str, float]]:
    """Unigram pieces with log probabilities; a whole word is more probable than its letters."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(f"▁{word}", -2.0) for word in WORDS]
    return pieces + [(letter, -6.0) for letter in ("▁", ",", *string.ascii_lowercase)]


def _write_t5_tokenizer(folder):
    folder.mkdir(parents=True)
    tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram(t5_pieces(), unk_id=2))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    tokenizer.decoder = tokenizers.decoders.Metaspace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=512,
    )
    fast.save_pretrained(folder)

"""Recognise what weights belong to from their names, and the prefix that wrappers put before them.

Training scripts wrap models: torch's DistributedDataParallel stores the names as "module.NAME",
torch.compile as "_orig_mod.NAME", and ema-pytorch a model and its average as "online_model.NAME"
and "ema_model.NAME".
"""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from tp_jax.messages.errors import UserError

# (pattern of a weight's name, what it belongs to, and the --kind or what to do). The first match of
# each kind counts.
KNOWN = (
    (r"lora_(A|B|up|down)\b|\.lora\.|lokr_w|hada_w", "a LoRA", "merge it into its base first"),
    (r"\bcontrolnet_|\bzero_convs\.", "a ControlNet", "give the base model"),
    (r"\bjoint_blocks\.0\.x_block\.|\bnorm1_context\.linear\.", "Stable Diffusion 3", "sd3"),
    (r"\bblocks\.0\.adaLN_modulation\.|\bnorm1\.emb\.class_embedder\.", "a DiT", "dit"),
    (r"\bdecoder\.conv_in\.", "an autoencoder of Stable Diffusion", "sd-vae"),
    (r"\bConv2d_1a_3x3\.", "an Inception", "inception"),
    (r"\bdouble_blocks\.|\bsingle_transformer_blocks\.", "FLUX", ""),
    (r"\badaln_single\.", "PixArt", ""),
    (r"\binput_blocks\.|\bdown_blocks\.\d+\.attentions\.", "a U-Net of Stable Diffusion", ""),
    (
        r"\btext_model\.encoder\.|\bblock\.0\.layer\.0\.SelfAttention\.",
        "a text encoder",
        "text encoders aren't converted: name their folder with config.text.path",
    ),
)
# What wrappers of torch put into the names of the weights of a model, also before single blocks.
WRAPPERS = re.compile(r"\b_(orig_mod|fsdp_wrapped_module|checkpoint_wrapped_module)\.")
KIND_NAME = re.compile(r"[a-z0-9-]+")


def looks_like(names: Collection[str], kind: str) -> str:
    """Say what weights look like, for the error that they can't be converted as `kind`.

    Returns:
      A text for the end of the message; empty if they look like that kind.

    Example:
      >>> looks_like(["joint_blocks.0.x_block.attn.qkv.weight"], "dit")
      ' (they look like Stable Diffusion 3: --kind=sd3)'
    """
    found = [row for row in KNOWN if any(re.search(row[0], name) for name in names)]
    # A LoRA has the names of its base too.
    if found and found[0][1] != "a LoRA" and any(row[2] == kind for row in found):
        return ""
    if not found:
        first = sorted(names)[:3]
        return f" (the file has {', '.join(first)}{' …' if len(names) > 3 else ''})"
    _, what, advice = found[0]
    if KIND_NAME.fullmatch(advice):
        advice = f"--kind={advice}"
    return f" (they look like {what}: {advice or 'no --kind converts it'})"


def without_wrappers(state: Mapping[str, Any]) -> dict[str, Any]:
    """Remove what wrappers such as torch.compile put into the names of weights.

    Raises:
      UserError: a weight is there with and without a wrapper.

    Example:
      >>> without_wrappers({"blocks.0._orig_mod.fc.bias": 1, "ema._fsdp_wrapped_module.x": 2})
      {'blocks.0.fc.bias': 1, 'ema.x': 2}
    """
    found: dict[str, str] = {}
    for key in state:
        name = WRAPPERS.sub("", key)
        if name in found:
            raise UserError(
                f"{key} and {found[name]} are the same weight: give a file that has it once"
            )
        found[name] = key
    return {name: state[key] for name, key in found.items()}


def find_prefix(state: Mapping[str, Any], anchors: Sequence[str]) -> str:
    """Return what stands before the names of a model's weights, such as "module._orig_mod.".

    If the weights are there twice, as a model and its moving average, that of the average.

    Args:
      state: weights by name.
      anchors: names of weights of the model; the first one that is found decides.

    Raises:
      UserError: there are several, and not exactly one is a moving average; or some of the weights
        have another prefix.

    Example:
      >>> find_prefix({"online_model.fc.bias": 0, "ema_model.fc.bias": 0}, ["fc.bias"])
      'ema_model.'
    """
    for anchor in anchors:
        found = [key[: -len(anchor)] for key in state if f".{key}".endswith(f".{anchor}")]
        averages = [prefix for prefix in found if re.search(r"(?<![a-z])ema(?![a-z])", prefix)]
        if len(found) == 1 or len(averages) == 1:
            prefix = (averages or found)[0]
            _check_together(state, prefix, found)
            return prefix
        if found:
            listed = ", ".join(prefix or "no prefix" for prefix in found[:4])
            raise UserError(
                f"the weights are there {len(found)} times, under {listed}: give a file that has "
                f"them once"
            )
    return ""


def _check_together(state: Mapping[str, Any], prefix: str, copies: Sequence[str]) -> None:
    """Raise a UserError if a weight of the model isn't under any prefix of a copy of it."""

    def numbered(name: str) -> str:
        return re.sub(r"\d+", "#", name)

    inside = {numbered(key[len(prefix) :]) for key in state if key.startswith(prefix)}
    for key in state:
        if not key.startswith(tuple(copies)):
            parts = numbered(key).split(".")
            if any(".".join(parts[first:]) in inside for first in range(len(parts) - 1)):
                raise UserError(
                    f"{key} doesn't start with {prefix!r} as the other weights do: give all "
                    f"weights the same prefix"
                )

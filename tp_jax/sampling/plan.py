"""Choose the condition of each sample: class labels in turn, or prompts in turn."""

import dataclasses
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np

from tp_jax.messages.errors import UserError
from tp_jax.sampling.generator import choose_labels
from tp_jax.sampling.loaded import Loaded
from tp_jax.sampling.prompts import encode_prompts
from tp_jax.sampling.request import check_no_frame

# Number of samples of classes if none is given.
DEFAULT_NUM = 64


@dataclasses.dataclass(frozen=True)
class SamplePlan:
    """The conditions of the N samples to generate.

    Attributes:
      conditions, rows: arguments of `Generator.batches`.
      values: [N] class labels or prompts.
      names: [N] the same in a form that fits into a file name.
      encoder: identity of the text encoder; None for classes.
    """

    conditions: Any
    rows: np.ndarray
    values: np.ndarray
    names: list[str]
    encoder: str | None = None


def plan_samples(
    loaded: Loaded,
    num: int | None,
    *,
    labels: Sequence[int] = (),
    prompts: Sequence[str] = (),
    negative_prompt: str = "",
    label_seed: int | None = None,
) -> SamplePlan:
    """Choose the conditions of `num` samples.

    Args:
      loaded: the model.
      num: number N of samples; None is one per prompt, or 64 samples of classes.
      labels: classes to cycle through; all classes if empty.
      prompts: prompts to cycle through, for models that are conditioned on text.
      negative_prompt: the prompt that guidance moves away from.
      label_seed: if given, choose the classes at random with this seed instead of in turn.

    Raises:
      UserError: the model isn't conditioned on what is given, or it needs something else.
    """
    check_no_frame(loaded)
    if prompts or loaded.built.model.condition_kind == "text":
        if labels or label_seed is not None:
            raise UserError(
                "--labels and --uniform only apply to models of classes: leave them out"
            )
        if not prompts:
            raise UserError(
                f"--prompts is missing: a {loaded.config.model.kind} model is conditioned on text; "
                f"give a prompt, or a file with one prompt per line"
            )
        encoded = encode_prompts(loaded, prompts, negative_prompt)
        num = len(encoded.texts) if num is None else num
        if num < 1:
            raise UserError(f"num={num}: must be 1 or more")
        rows = np.arange(num) % len(encoded.texts)
        values = np.array(encoded.texts)[rows]
        names = [slug(value) for value in values]
        return SamplePlan(encoded.conditions, rows, values, names, encoded.encoder)
    if negative_prompt:
        raise UserError("--negative_prompt only applies to models of text: leave it out")
    num, classes = DEFAULT_NUM if num is None else num, loaded.built.model.classes
    chosen = choose_labels(labels, num, classes, label_seed)
    # A model without classes has the single label 0.
    names = [f"class{label}" if classes else "sample" for label in chosen]
    return SamplePlan({"label": chosen}, np.arange(num), chosen, names)


# Most file systems accept names of 255 bytes; the number, the ending and ".tmp" are added to it.
SLUG_CHARACTERS, SLUG_BYTES = 60, 180


def slug(prompt: str) -> str:
    """Return a prompt in a form that fits into a file name.

    Letters, digits and combining marks of any script are kept, in lower case and composed (NFC);
    all else becomes "-". The result has at most `SLUG_CHARACTERS` and `SLUG_BYTES`.

    Example:
      >>> slug("A red bench, at 5:30"), slug("红色的长椅 🪑"), slug("🪑")
      ('a-red-bench-at-5-30', '红色的长椅', 'prompt')
    """
    text = unicodedata.normalize("NFC", prompt.lower())
    kept = [" "]
    for character in text:
        kind = unicodedata.category(character)
        if "\ufe00" <= character <= "\ufe0f" or kind == "Cf":
            continue  # variation selectors of emoji, and joiners: they don't separate words
        letter = kind[0] in "LN" or (kind in ("Mn", "Mc") and kept[-1] != " ")
        kept.append(character if letter else " ")
    words = "-".join("".join(kept).split())[:SLUG_CHARACTERS]
    return words.encode()[:SLUG_BYTES].decode(errors="ignore") or "prompt"

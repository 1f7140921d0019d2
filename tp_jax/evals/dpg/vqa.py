"""Models that answer questions about images, run through `transformers`.

Any model of these two kinds is loaded from a local folder with its published weights:

    visual question answering   ViLT, BLIP, BLIP-2
    image and text to text      chat models with images, such as Qwen2-VL, LLaVA or SmolVLM

The official scorer of DPG-Bench asks mPLUG-large, which transformers doesn't have. Answers of
another model give other scores, so that only scores from the same model are comparable.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from tp_jax.evals.dpg.questions import VQA
from tp_jax.files.downloads import read_downloaded_json
from tp_jax.messages.errors import UserError
from tp_jax.text.published import (
    choose_device,
    import_packages,
    load_processor,
    load_published,
    weights_sha256,
)

# How a model is asked, by the name of its class; others are asked the question as it is.
PROMPTS = {"Blip2ForConditionalGeneration": "Question: {} Answer:"}
CHAT_PROMPT = "{} Answer with yes or no."
NEW_TOKENS = 10


def load_vqa(folder: epath.Path, device: str | None = None) -> tuple[VQA, dict[str, str]]:
    """Load a model that answers questions about images.

    Args:
      folder: folder with config.json, weights, and the files of its processor.
      device: torch device; None is a GPU if one is available, else the CPU.

    Returns:
      The model, in float32 on a CPU and bfloat16 on a GPU; and its description: name of the class,
      prompt, and SHA-256 of its weights.

    Raises:
      UserError: torch or transformers isn't installed, or the folder has no such model.
    """
    torch, transformers = import_packages("--vqa")
    model_class, is_chat = _find_class(transformers, folder)
    model, processor = load_published(model_class, folder), load_processor(folder)
    device = choose_device(device)
    model = model.to(device, torch.float32 if device == "cpu" else torch.bfloat16)
    prompt = CHAT_PROMPT if is_chat else PROMPTS.get(model_class.__name__, "{}")
    if is_chat and not getattr(processor, "chat_template", None):
        raise UserError(f"{folder} has no chat template: download chat_template.json or .jinja")
    tokenizer = processor.tokenizer
    if is_chat or model_class.__name__ in PROMPTS:
        tokenizer.padding_side = "left"  # They continue the question after its last token.

    def encode(pictures: list[Image.Image], questions: list[str]) -> Any:
        options: dict[str, Any] = dict(padding=True, return_tensors="pt")
        if not is_chat:
            return processor(images=pictures, text=questions, **options)
        chats = [
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
            for question in questions
        ]
        texts = processor.apply_chat_template(chats, add_generation_prompt=True)
        return processor(images=[[each] for each in pictures], text=texts, **options)

    @torch.inference_mode()
    def answer(images: np.ndarray, questions: Sequence[str]) -> list[str]:
        pictures = [Image.fromarray(image) for image in images]
        encoded = encode(pictures, [prompt.format(question) for question in questions])
        inputs = {
            name: value.to(device, model.dtype if value.is_floating_point() else value.dtype)
            for name, value in encoded.items()
        }
        if not model.can_generate():
            labels = model(**inputs).logits.argmax(-1).tolist()
            return [_normalise(model.config.id2label[label]) for label in labels]
        tokens = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
        asked = inputs["input_ids"]
        if tokens.shape[1] > asked.shape[1] and bool((tokens[:, : asked.shape[1]] == asked).all()):
            tokens = tokens[:, asked.shape[1] :]
        texts = tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [_normalise(text) for text in texts]

    described = {"vqa": model_class.__name__, "prompt": prompt}
    return answer, described | {"weights": weights_sha256(folder)}


def _find_class(transformers: Any, folder: epath.Path) -> tuple[Any, bool]:
    """Return the class of the model in a folder, and whether it is a chat model."""
    from transformers.models.auto import modeling_auto as known

    config = folder / "config.json"
    if not config.exists():
        raise UserError(f"--vqa={folder} has no config.json: name a folder with published weights")
    listed = read_downloaded_json(config).get("architectures")
    name = str(listed[0]) if isinstance(listed, list) and listed else ""
    if name in known.MODEL_FOR_VISUAL_QUESTION_ANSWERING_MAPPING_NAMES.values():
        return getattr(transformers, name), False
    if name in known.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values():
        return getattr(transformers, name), True
    raise UserError(
        f"--vqa={folder}: transformers {transformers.__version__} knows no model {name!r} that "
        f"answers questions about images: give one such as ViLT, BLIP or Qwen2-VL"
    )


def _normalise(answer: str) -> str:
    """Return "yes" or "no" for an answer that begins with it, else the answer in lower case.

    Example:
      >>> _normalise(" Yes, it is."), _normalise("Two"), _normalise("nothing")
      ('yes', 'two', 'nothing')
    """
    words = re.findall(r"\w+", answer.lower())
    return words[0] if words and words[0] in ("yes", "no") else answer.strip().lower()

"""GenEval's object detector and colour classifier, run through `transformers`.

They are loaded from local folders with published weights:

    facebook/mask2former-swin-small-coco-instance   detects objects
    openai/clip-vit-large-patch14                   classifies their colours

The scores are close to the official evaluator's but not identical, because:

- Mask2Former has the weights that its authors published; the official evaluator uses weights that
  mmdet retrained. Pre- and postprocessing follow mmdet. Like GenEval, they apply no non-maximum
  suppression.
- All computation is in float32. The official evaluator runs CLIP in half precision.

Axes: Q queries, C classes, H×W pixels, N objects.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from tp_jax.evals.geneval.results import ColourClassifier, Detector
from tp_jax.evals.geneval.rules import COLOURS, Detection, Objects
from tp_jax.messages.errors import UserError
from tp_jax.pictures.reading import IMAGENET_MEAN, IMAGENET_STD
from tp_jax.text.published import (
    choose_device,
    import_packages,
    load_published,
    load_tokenizer,
)

# COCO's 80 classes, in COCO's order, under the names that GenEval uses, such as "computer mouse".
CLASSES = tuple(
    """person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,
    stop sign,parking meter,bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,
    backpack,umbrella,handbag,tie,suitcase,frisbee,skis,snowboard,sports ball,kite,baseball bat,
    baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,cup,fork,knife,spoon,bowl,
    banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,potted plant,
    bed,dining table,toilet,tv,laptop,computer mouse,tv remote,computer keyboard,cell phone,
    microwave,oven,toaster,sink,refrigerator,book,clock,vase,scissors,teddy bear,hair drier,
    toothbrush""".replace("\n    ", "").split(",")
)
USER = "GenEval's --score"  # what needs torch, for messages
MAX_DETECTIONS = 100  # per image, over all classes
# Detector input: scale the image so that the short side is 800 pixels, but the long side at most
# 1333, then pad both sides to multiples of 32.
SHORT_SIDE, LONG_SIDE, DIVISOR = 800, 1333, 32
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
BACKGROUND = (0x99,) * 3
# CLIP prompts for a colour and a class name.
TEMPLATES = ("a photo of a {} {}", "a photo of a {}-colored {}", "a photo of a {} object")


def load_detector(path: epath.Path, device: str | None = None) -> Detector:
    """Load Mask2Former with a Swin backbone, trained on COCO instance segmentation.

    Args:
      path: folder with config.json and model.safetensors.
      device: torch device; None is a GPU if one is available, else the CPU.

    Raises:
      UserError: torch or transformers isn't installed, or the folder has no such model.
    """
    torch, transformers = import_packages(USER)
    model, device = _load(transformers.Mask2FormerForUniversalSegmentation, path, device)
    if model.config.num_labels != len(CLASSES):
        raise UserError(
            f"{path}: the model has {model.config.num_labels} classes instead of COCO's "
            f"{len(CLASSES)}: use facebook/mask2former-swin-small-coco-instance"
        )

    @torch.inference_mode()
    def detect(image: np.ndarray) -> Objects:
        size = image.shape[:2]
        pixels, resized = detector_input(torch.from_numpy(image.copy()).to(device))
        out = model(pixel_values=pixels)
        return decode_objects(
            out.class_queries_logits[0],
            out.masks_queries_logits[0],
            pixels.shape[-2:],
            resized,
            size,
        )

    return detect


def detector_input(image: Any) -> tuple[Any, tuple[int, int]]:
    """Resize, normalise and pad an image for the detector.

    Args:
      image: uint8 [H, W, 3] torch tensor.

    Returns:
      The input [1, 3, …, …] float32, padded with zeros at the right and the bottom; and height and
      width of the resized image without the padding.
    """
    torch, _ = import_packages(USER)
    sides = image.shape[:2]
    scale = min(LONG_SIDE / max(sides), SHORT_SIDE / min(sides))
    height, width = (int(side * scale + 0.5) for side in sides)
    resized = height, width
    pixels = image.permute(2, 0, 1)[None].float()
    pixels = _resize(pixels, resized).round() / 255
    mean, std = (torch.tensor(x, device=pixels.device)[:, None, None]
                 for x in (IMAGENET_MEAN, IMAGENET_STD))  # fmt: skip
    below, right = -height % DIVISOR, -width % DIVISOR
    pixels = torch.nn.functional.pad((pixels - mean) / std, (0, right, 0, below))
    return pixels, resized


def decode_objects(
    class_logits: Any,
    mask_logits: Any,
    padded: Sequence[int],
    resized: tuple[int, int],
    size: tuple[int, int],
) -> Objects:
    """Convert the detector's output to objects: the 100 best pairs of a query and a class.

    The score of an object is the probability of its class times the mean mask probability over the
    pixels of its mask. Its box is the bounding box of its mask.

    Args:
      class_logits: [Q, C + 1] tensor; the last class means "no object".
      mask_logits: [Q, …, …] tensor at a lower resolution than the padded input.
      padded: height and width of the padded input.
      resized: height and width of the input without padding.
      size: height and width of the image.
    """
    probabilities = class_logits.softmax(-1)[:, :-1]
    num = min(MAX_DETECTIONS, probabilities.numel())
    probabilities, order = probabilities.flatten().topk(num)
    query, label = order // (class_logits.shape[1] - 1), order % (class_logits.shape[1] - 1)
    logits = _resize(mask_logits[None].float(), padded)[..., : resized[0], : resized[1]]
    logits = _resize(logits, size)[0]
    inside = logits > 0
    quality = (logits.sigmoid() * inside).sum((1, 2)) / (inside.sum((1, 2)) + 1e-6)
    scores = (probabilities * quality[query]).cpu().numpy()
    masks = inside.cpu().numpy()
    found: Objects = {}
    for score, i, name in zip(scores, query.tolist(), label.tolist(), strict=True):
        if masks[i].any():
            box = mask_box(masks[i])
            found.setdefault(CLASSES[name], []).append(Detection(box, float(score), masks[i]))
    return found


def mask_box(mask: np.ndarray) -> np.ndarray:
    """Return the bounding box of a mask [H, W]: left, top, right, bottom (exclusive), [4] float32.

    Example:
      >>> mask = np.zeros((4, 6), bool)
      >>> mask[1:3, 2:5] = True
      >>> mask_box(mask).tolist()
      [2.0, 1.0, 5.0, 3.0]
    """
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)


def load_colour_classifier(path: epath.Path, device: str | None = None) -> ColourClassifier:
    """Load CLIP as a zero-shot classifier of ten colours, for objects of any class.

    Args:
      path: folder with config.json, model.safetensors and the tokenizer's files.
      device: torch device; None is a GPU if one is available, else the CPU.

    Raises:
      UserError: torch or transformers isn't installed, or the folder has no such model.
    """
    torch, transformers = import_packages(USER)
    model, device = _load(transformers.CLIPModel, path, device)
    tokenizer = load_tokenizer(path, "CLIP", int(model.config.text_config.vocab_size))
    side = model.config.vision_config.image_size

    @functools.cache
    @torch.inference_mode()
    def text_embeddings(name: str) -> Any:
        """Return one unit vector per colour [colours, width], averaged over the templates."""
        texts = [template.format(colour, name) for colour in COLOURS for template in TEMPLATES]
        tokens = tokenizer(texts, padding=True, return_tensors="pt").to(device)
        text = model.text_model(tokens.input_ids, attention_mask=tokens.attention_mask)
        unit = torch.nn.functional.normalize(model.text_projection(text.pooler_output), dim=-1)
        mean = unit.reshape(len(COLOURS), len(TEMPLATES), -1).mean(1)
        return torch.nn.functional.normalize(mean, dim=-1)

    @torch.inference_mode()
    def name_colours(image: np.ndarray, group: Sequence[Detection], name: str) -> list[str]:
        crops = np.stack([colour_input(crop(image, detection), side) for detection in group])
        vision = model.vision_model(torch.from_numpy(crops).to(device))
        similarity = model.visual_projection(vision.pooler_output) @ text_embeddings(name).T
        return [COLOURS[i] for i in similarity.argmax(-1).tolist()]

    return name_colours


def crop(image: np.ndarray, detection: Detection) -> Image.Image:
    """Crop an image to an object's box, with grey pixels outside the object's mask."""
    picture = Image.fromarray(image)
    if detection.mask is not None:
        blank = Image.new("RGB", picture.size, BACKGROUND)
        picture = Image.composite(picture, blank, Image.fromarray(detection.mask))
    left, top, right, bottom = (float(side) for side in detection.box)
    return picture.crop((left, top, right, bottom))


def colour_input(picture: Image.Image, side: int) -> np.ndarray:
    """Resize, centre-crop and normalise a picture for CLIP: [3, side, side] float32."""
    width, height = picture.size
    short = min(width, height)
    width, height = side * width // short, side * height // short
    left, top = round((width - side) / 2), round((height - side) / 2)
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.asarray(picture.crop((left, top, left + side, top + side)), np.float32) / 255
    pixels = (pixels - np.array(CLIP_MEAN, np.float32)) / np.array(CLIP_STD, np.float32)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _resize(images: Any, size: Sequence[int]) -> Any:
    """Resize [N, …, H, W] bilinearly with half-pixel centres and without antialiasing."""
    torch, _ = import_packages(USER)
    return torch.nn.functional.interpolate(
        images, size=tuple(size), mode="bilinear", align_corners=False
    )


def _load(kind: Any, path: epath.Path, device: str | None) -> tuple[Any, str]:
    """Load a model from a folder for inference; return it and its torch device."""
    try:
        model = load_published(kind, path, pickled=True)
    except UserError as error:
        raise UserError(f"{path}: can't be read as {kind.__name__}: {error}") from error
    device = choose_device(device)
    return model.float().to(device), device

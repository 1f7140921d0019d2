"""GenEval's two networks, from local folders of published weights, through `transformers`.

    facebook/mask2former-swin-small-coco-instance   objects
    openai/clip-vit-large-patch14                   their colours

What differs from the official evaluator, whose scores these come close to but don't repeat:

- Mask2Former's weights: its authors' own, not those that mmdet trained anew. The steps from an
  image to boxes are mmdet's; they have no suppression of overlapping boxes, nor has GenEval.
- Everything is in float32. The official evaluator runs CLIP in half precision.

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

# COCO's 80, in its order, under GenEval's names: it tells computers' mice from the animals.
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
DETECTIONS = 100  # of an image, over all classes
SHORT, LONG, DIVISOR = 800, 1333, 32  # the detector's input: its sides, and what they divide by
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
BACKGROUND = (0x99,) * 3
DESCRIPTIONS = ("a photo of a {} {}", "a photo of a {}-colored {}", "a photo of a {} object")


def load_detector(path: epath.Path, device: str | None = None) -> Detector:
    """Mask2Former with a Swin backbone, trained on COCO's instances.

    Args:
      path: a folder of config.json and model.safetensors.
      device: of torch; a GPU where there is one.

    Raises:
      UserError: torch or transformers is missing, or the folder holds something else.
    """
    torch, transformers = _packages()
    model, device = _load(transformers.Mask2FormerForUniversalSegmentation, path, device)
    if model.config.num_labels != len(CLASSES):
        raise UserError(
            f"{path}: knows {model.config.num_labels} classes, must be COCO's {len(CLASSES)}: "
            f"facebook/mask2former-swin-small-coco-instance"
        )

    @torch.inference_mode()
    def detect(image: np.ndarray) -> Objects:
        size = image.shape[:2]
        pixels, inner = detector_input(torch.from_numpy(image.copy()).to(device))
        out = model(pixel_values=pixels)
        return objects(
            out.class_queries_logits[0], out.masks_queries_logits[0], pixels.shape[-2:], inner, size
        )

    return detect


def detector_input(image: Any) -> tuple[Any, tuple[int, int]]:
    """uint8 [H, W, 3] as the network takes it.

    Returns:
      [1, 3, …, …] float32, normalised, zeros at the right and below; height and width without them.
    """
    torch, _ = _packages()
    sides = image.shape[:2]
    scale = min(LONG / max(sides), SHORT / min(sides))
    height, width = (int(side * scale + 0.5) for side in sides)
    inner = height, width
    pixels = image.permute(2, 0, 1)[None].float()
    pixels = _resize(pixels, inner).round() / 255
    mean, std = (torch.tensor(x, device=pixels.device)[:, None, None]
                 for x in (IMAGENET_MEAN, IMAGENET_STD))  # fmt: skip
    below, right = -height % DIVISOR, -width % DIVISOR
    pixels = torch.nn.functional.pad((pixels - mean) / std, (0, right, 0, below))
    return pixels, inner


def objects(
    class_logits: Any,
    mask_logits: Any,
    padded: Sequence[int],
    inner: tuple[int, int],
    size: tuple[int, int],
) -> Objects:
    """The network's answer as objects: of all queries and classes, the surest 100.

    An object's score is its class's probability times the mean probability of its mask's pixels;
    its box is its mask's.

    Args:
      class_logits: [Q, C + 1] tensor, the last of them "nothing".
      mask_logits: [Q, …, …] tensor, of the padded input, smaller.
      padded, inner, size: height and width of the input, of it without padding, of the image.
    """
    chances = class_logits.softmax(-1)[:, :-1]
    chances, order = chances.flatten().topk(min(DETECTIONS, chances.numel()))
    query, label = order // (class_logits.shape[1] - 1), order % (class_logits.shape[1] - 1)
    logits = _resize(mask_logits[None].float(), padded)[..., : inner[0], : inner[1]]
    logits = _resize(logits, size)[0]
    inside = logits > 0
    quality = (logits.sigmoid() * inside).sum((1, 2)) / (inside.sum((1, 2)) + 1e-6)
    scores = (chances * quality[query]).cpu().numpy()
    masks = inside.cpu().numpy()
    found: Objects = {}
    for score, one, name in zip(scores, query.tolist(), label.tolist(), strict=True):
        if masks[one].any():
            box = mask_box(masks[one])
            found.setdefault(CLASSES[name], []).append(Detection(box, float(score), masks[one]))
    return found


def mask_box(mask: np.ndarray) -> np.ndarray:
    """Left, top, right, bottom [4] float32 of a mask [H, W]; the last two are past its end."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)


def load_colours(path: epath.Path, device: str | None = None) -> ColourClassifier:
    """CLIP as a classifier of ten colours of any class.

    Args:
      path: a folder of config.json, model.safetensors and the tokenizer's files.
      device: of torch; a GPU where there is one.

    Raises:
      UserError: torch or transformers is missing, or the folder holds something else.
    """
    torch, transformers = _packages()
    model, device = _load(transformers.CLIPModel, path, device)
    tokenizer = _from_folder(transformers.AutoTokenizer, path)
    side = model.config.vision_config.image_size

    @functools.cache
    @torch.inference_mode()
    def directions(name: str) -> Any:
        """[colours, width]: each the mean of its descriptions' directions, as a direction."""
        texts = [form.format(colour, name) for colour in COLOURS for form in DESCRIPTIONS]
        tokens = tokenizer(texts, padding=True, return_tensors="pt").to(device)
        text = model.text_model(tokens.input_ids, attention_mask=tokens.attention_mask)
        unit = torch.nn.functional.normalize(model.text_projection(text.pooler_output), dim=-1)
        mean = unit.reshape(len(COLOURS), len(DESCRIPTIONS), -1).mean(1)
        return torch.nn.functional.normalize(mean, dim=-1)

    @torch.inference_mode()
    def name_colours(image: np.ndarray, group: Sequence[Detection], name: str) -> list[str]:
        crops = np.stack([colour_input(crop(image, one), side) for one in group])
        vision = model.vision_model(torch.from_numpy(crops).to(device))
        likeness = model.visual_projection(vision.pooler_output) @ directions(name).T
        return [COLOURS[i] for i in likeness.argmax(-1).tolist()]

    return name_colours


def crop(image: np.ndarray, one: Detection) -> Image.Image:
    """The box of an object, grey where its mask isn't."""
    picture = Image.fromarray(image)
    if one.mask is not None:
        blank = Image.new("RGB", picture.size, BACKGROUND)
        picture = Image.composite(picture, blank, Image.fromarray(one.mask))
    left, top, right, bottom = (float(side) for side in one.box)
    return picture.crop((left, top, right, bottom))


def colour_input(picture: Image.Image, side: int) -> np.ndarray:
    """A picture as CLIP takes it, [3, side, side] float32: its middle, normalised."""
    width, height = picture.size
    short = min(width, height)
    width, height = side * width // short, side * height // short
    left, top = round((width - side) / 2), round((height - side) / 2)
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.asarray(picture.crop((left, top, left + side, top + side)), np.float32) / 255
    pixels = (pixels - np.array(CLIP_MEAN, np.float32)) / np.array(CLIP_STD, np.float32)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _resize(images: Any, size: Sequence[int]) -> Any:
    """[N, …, H, W], bilinear with half-pixel centres, not smoothed where it gets smaller."""
    torch, _ = _packages()
    return torch.nn.functional.interpolate(
        images, size=tuple(size), mode="bilinear", align_corners=False
    )


def _packages() -> tuple[Any, Any]:
    try:
        import torch
        import transformers
    except ImportError as error:
        raise UserError(
            f"{error.name} is missing, which runs GenEval's detector: pip install -e '.[text]'"
        ) from None
    return torch, transformers


def _load(kind: Any, path: epath.Path, device: str | None) -> tuple[Any, str]:
    """The model of a folder, ready to be asked, and where it is."""
    torch, _ = _packages()
    model, info = _from_folder(kind, path, output_loading_info=True)
    missing = sorted(info["missing_keys"])
    if missing:
        raise UserError(
            f"{path}: is no {kind.__name__}: {len(missing)} weights are missing, {missing[0]} first"
        )
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return model.float().to(device).eval(), device


def _from_folder(kind: Any, path: epath.Path, **options: Any) -> Any:
    if not (path / "config.json").exists():
        raise UserError(f"{path}: has no config.json; name a folder of published weights")
    try:
        return kind.from_pretrained(str(path), local_files_only=True, **options)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{path}: can't be read as {kind.__name__}: {reason}") from None

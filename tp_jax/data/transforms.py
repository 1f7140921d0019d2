"""Decoding and augmentation, done in the workers."""

import dataclasses
import io

import grain
import numpy as np
from PIL import Image


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """ADM's centre crop: halve by box filter while twice too large, bicubic, then crop.

    Source: openai/guided-diffusion, as DiT uses it.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    new_size = round(image.width * scale), round(image.height * scale)
    image = image.resize(new_size, Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


@dataclasses.dataclass(frozen=True)
class DecodeImage(grain.transforms.RandomMap):
    """Record -> {"x": [S, S, C] float32 in [-1, 1], "condition": {"label": int32}}.

    Attributes:
      size: side S.
      channels: C, 1 or 3.
      flip: mirror left to right with probability one half.
    """

    size: int
    channels: int
    flip: bool

    def random_map(self, record: dict, rng: np.random.Generator) -> dict:
        """Decodes, crops where the size differs, flips, and scales."""
        # TFDS hands the encoded bytes out as a NumPy scalar.
        image = Image.open(io.BytesIO(bytes(record["image"])))
        image = image.convert("L" if self.channels == 1 else "RGB")
        if image.size != (self.size, self.size):
            image = centre_crop(image, self.size)
        pixels = np.asarray(image, np.float32).reshape(self.size, self.size, self.channels)
        if self.flip and rng.random() < 0.5:
            pixels = pixels[:, ::-1]
        label = np.int32(record["label"])
        return {"x": pixels / 127.5 - 1, "condition": {"label": label}}

"""Decode image files of any mode and bit depth to 8 bits: upright, and opaque over a background.

Training, `prepare` and evaluation all decode images with `decode_image`.
"""

import io
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageColor, UnidentifiedImageError

from tp_jax.files.pointers import POINTER
from tp_jax.messages.errors import UserError

BACKGROUND = "white"
# EXIF's orientation -> what makes the image upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Formats whose grey samples of more than 8 bits Pillow scales to the whole range of 16 bits.
_SCALED_TO_16_BITS = ("PNG", "PPM", "JPEG2000")
_TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_SAMPLE_FORMAT = 258, 262, 339
_WHITE_IS_ZERO, _UNSIGNED = 0, 1
# How Pillow unpacks a PNG -> a grey or RGB sample of the file as one of Pillow's 8-bit samples.
_PNG_SAMPLE = {
    "L;2": lambda sample: sample * 85,
    "L;4": lambda sample: sample * 17,
    "RGB;16B": lambda sample: sample >> 8,
}


class UnreadableImage(ValueError):
    """An image file can't be decoded; the message says why, but doesn't name the file."""


def parse_colour(name: str, value: str) -> tuple[int, int, int]:
    """Return the red, green and blue of a colour, from 0 to 255.

    Args:
      name: the config field or flag that holds the colour, for the error message.
      value: a name of CSS such as "white", or "#rrggbb".

    Raises:
      UserError: the colour is unknown or has an alpha value.

    Example:
      >>> parse_colour("config.data.background", "#ff8000")
      (255, 128, 0)
    """
    try:
        found = ImageColor.getrgb(value)
    except (ValueError, AttributeError, TypeError):
        found = ()
    if len(found) != 3:
        raise UserError(
            f"{name}={value!r} isn't an opaque colour: give a name such as 'white', or '#rrggbb'"
        )
    return found


def decode_image(
    data: bytes, mode: str = "RGB", background: str = BACKGROUND, upright: bool = True
) -> Image.Image:
    """Decode the content of an image file to 8 bits.

    Grey samples of more bits are scaled from the range that the file states, so that white stays
    white. Transparent pixels are composed over the background. Of an animation or a file of several
    pages, the first is read.

    Args:
      data: content of a PNG, JPEG or other file that Pillow reads.
      mode: "RGB", or "L" for grey.
      background: a colour as for `parse_colour`.
      upright: rotate or mirror the image as its EXIF orientation says.

    Returns:
      An image of the mode `mode`.

    Raises:
      UnreadableImage: the data are damaged, have no format that Pillow reads, take too much memory,
        or hold numbers whose range isn't known.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            unpacked = image.tile[0][3] if image.tile else None
            image.load()
            # Pillow itself makes a TIFF upright.
            orientation = _orientation(image) if upright and image.format != "TIFF" else 1
            decoded = _opaque(_eight_bits(image), unpacked, background).convert(mode)
        return decoded.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else decoded
    except UnreadableImage:
        raise
    except UnidentifiedImageError as error:
        pointer = data.startswith(POINTER)
        why = " (it is a Git LFS pointer: run `git lfs pull`)" if pointer else ""
        raise UnreadableImage(f"its format isn't one that Pillow reads{why}") from error
    except MemoryError as error:
        raise UnreadableImage("it takes more memory than there is") from error
    # Damaged bytes raise exceptions of many types in Pillow's readers.
    except Exception as error:
        raise UnreadableImage(str(error).strip() or repr(error)) from error


def _orientation(image: Image.Image) -> int:
    """Return EXIF's orientation; 1, which is upright, if there is none or EXIF is damaged."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:
        return 1


def _unknown_range(numbers: str) -> UnreadableImage:
    return UnreadableImage(
        f"it holds {numbers}, whose range isn't known: save it with 8 or 16 bits per sample"
    )


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale grey samples of more than 8 bits to mode L, or LA if a grey value is transparent."""
    tags: Any = getattr(image, "tag_v2", {})  # of a TIFF
    sample_format = tags.get(_TIFF_SAMPLE_FORMAT, (_UNSIGNED,))[0]
    if image.mode == "F":
        raise _unknown_range("floating-point numbers")
    if not image.mode.startswith("I"):
        if sample_format != _UNSIGNED:
            raise _unknown_range("signed numbers")
        return image
    if image.format not in ("TIFF", *_SCALED_TO_16_BITS):
        raise _unknown_range(f"numbers of mode {image.mode} in {image.format}")
    bits = tags[_TIFF_BITS][0] if image.format == "TIFF" else 16
    values = np.asarray(image)
    if sample_format == _UNSIGNED:
        white = 2**bits - 1
        values = values.astype(np.uint32)  # Pillow holds 32 unsigned bits as signed ones.
    elif values.min(initial=0) < 0:
        raise _unknown_range("negative numbers")
    else:
        white = 2 ** (bits - 1) - 1
    largest = int(values.max(initial=0))
    if bits == 32 and 0 < largest < white / 128:
        raise _unknown_range(f"32-bit numbers of which none is above {largest}")
    grey = np.empty(values.shape, np.uint8)
    for row, scaled in zip(values, grey, strict=True):  # row by row, to bound the memory
        scaled[:] = np.round(row * (255 / white)).clip(0, 255)
    inverted = tags.get(_TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO
    result = Image.fromarray(255 - grey if inverted else grey)
    if "transparency" in image.info:
        alpha = np.where(values == image.info["transparency"], 0, 255).astype(np.uint8)
        result.putalpha(Image.fromarray(alpha))
    return result


def transparent(image: Image.Image) -> bool:
    """Return whether an image has an alpha channel or a transparent colour."""
    alpha = image.mode in ("LA", "La", "PA", "RGBA", "RGBa")
    palette_with_alpha = image.palette is not None and image.palette.mode.endswith("A")
    return alpha or palette_with_alpha or "transparency" in image.info


def _opaque(image: Image.Image, unpacked: Any, background: str) -> Image.Image:
    """Compose a transparent image over a background, without a change to opaque images.

    Args:
      unpacked: Pillow's arguments of the unpacking, which tell the bit depth of a PNG.
    """
    if not transparent(image):
        return image
    if image.mode in ("La", "RGBa"):  # colours multiplied by alpha
        image = image.convert(image.mode.upper())
    key = image.info.get("transparency")
    to_8_bits = _PNG_SAMPLE.get(unpacked) if isinstance(unpacked, str) else None
    if key is not None and to_8_bits:
        key = tuple(map(to_8_bits, key)) if isinstance(key, tuple) else to_8_bits(key)
        image.info["transparency"] = key
    coloured = image.convert("RGBA")
    result = Image.new("RGB", image.size, parse_colour("background", background))
    result.paste(coloured.convert("RGB"), mask=coloured.getchannel("A"))
    return result

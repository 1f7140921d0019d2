"""Decoding image files: every mode, bit depth, transparency, orientation; what is refused."""

import resource
import struct
import zlib

import numpy as np
import pytest
from conftest import tiny_config
from etils import epath
from image_files import png, saved, tiff
from PIL import Image

from tp_jax import config as config_lib
from tp_jax import data
from tp_jax.data.transforms import centre_crop, decode_pixels
from tp_jax.messages.errors import UserError
from tp_jax.pictures.decoding import UnreadableImage, decode_image
from tp_jax.pictures.reading import open_images, read_rgb

GREY16 = struct.pack(">4H", 0, 257, 32896, 65535)
FULL_INT = np.array([[0, 2**30, 2**31 - 1]], np.int32)
RED = (255, 0, 0)
TWO = dict(save_all=True, append_images=[Image.new("RGB", (2, 1), "blue")])


def array(values, dtype):
    return Image.fromarray(np.array([values], dtype))


# name -> (file, its pixels: grey levels or RGB)
DECODED = {
    "grey PNG, 1 bit": (png(2, 1, 0, b"\x40"), [0, 255]),
    "grey PNG, 2 bits": (png(4, 2, 0, b"\x1b"), [0, 85, 170, 255]),
    "grey PNG, 16 bits": (png(4, 16, 0, GREY16), [0, 1, 128, 255]),
    "RGB PNG, 16 bits": (png(1, 16, 2, struct.pack(">3H", 65535, 257, 0)), [(255, 1, 0)]),
    "grey TIFF, 8 bits, 0 is white": (tiff(8, 1, b"\x00\xff", 2, True), [255, 0]),
    "grey TIFF, 12 bits": (tiff(12, 1, b"\xff\xf8\x00", 2), [255, 128]),
    "grey TIFF, 16 bits": (saved(array([0, 257, 65535], np.uint16), "TIFF"), [0, 1, 255]),
    "grey TIFF, 16 bits, big-endian": (saved(array([0, 65535], ">u2"), "TIFF"), [0, 255]),
    "grey TIFF, 16 bits, 0 is white": (tiff(16, 1, b"\0\0\xff\xff", 2, True), [255, 0]),
    "grey TIFF, 16 bits, signed": (tiff(16, 2, struct.pack("<2h", 0, 32767), 2), [0, 255]),
    "grey TIFF, 32 bits": (tiff(32, 1, struct.pack("<3I", 0, 2**31, 2**32 - 1), 3), [0, 128, 255]),
    "grey TIFF, 32 bits, signed": (saved(Image.fromarray(FULL_INT), "TIFF"), [0, 128, 255]),
    "grey TIFF, 32 bits, black": (saved(array([0, 0], np.int32), "TIFF"), [0, 0]),
    "PGM, 12 bits": (b"P5 2 1 4095\n" + struct.pack(">2H", 2048, 4095), [128, 255]),
    "JPEG 2000, 16 bits": (saved(array([0, 65535] * 4, np.uint16), "JPEG2000"), [0, 255] * 4),
    "grey PNG, 2 bits, colour key": (png(4, 2, 0, b"\x1b", b"tRNS\0\1"), [0, 255, 170, 255]),
    "grey PNG, 4 bits, colour key": (png(2, 4, 0, b"\x3c", b"tRNS\0\3"), [255, 204]),
    "grey PNG, 16 bits, colour key": (png(4, 16, 0, GREY16, b"tRNS\1\1"), [0, 255, 128, 255]),
    "RGB PNG, colour key": (png(2, 8, 2, bytes(6), b"tRNS" + bytes(6)), [255, 255]),
    "RGB PNG, 16 bits, colour key": (
        png(2, 16, 2, struct.pack(">6H", 65535, 0, 0, 0, 65535, 0), b"tRNS\xff\xff\0\0\0\0"),
        [(255, 255, 255), (0, 255, 0)],
    ),
    "palette, alpha of one colour": (
        png(2, 8, 3, b"\0\1", b"PLTE" + bytes([10, 20, 30, 40, 50, 60]), b"tRNS\x80"),
        [(132, 137, 142), (40, 50, 60)],
    ),
    "grey and alpha": (saved(Image.new("LA", (1, 1), (10, 0)), "PNG"), [255]),
    "grey and alpha, 16 bits": (png(1, 16, 4, struct.pack(">2H", 5, 0)), [255]),
    "RGBA, hidden red": (saved(Image.new("RGBA", (1, 1), (255, 0, 0, 0)), "PNG"), [255]),
    "RGBA, half": (saved(Image.new("RGBA", (1, 1), (200, 0, 0, 128)), "PNG"), [(227, 127, 127)]),
    "RGBA, 16 bits": (png(1, 16, 6, bytes(8)), [255]),
    "RGBA WebP": (saved(Image.new("RGBA", (1, 1), (9, 9, 9, 0)), "WEBP", lossless=True), [255]),
    "RGBA TIFF": (saved(Image.new("RGBA", (1, 1), (9, 9, 9, 0)), "TIFF"), [255]),
    "RGBA TGA": (saved(Image.new("RGBA", (1, 1), (9, 9, 9, 0)), "TGA"), [255]),
    "GIF, transparent": (saved(Image.new("P", (1, 1)), "GIF", transparency=0), [255]),
    "RGBX TIFF": (saved(Image.new("RGBX", (1, 1), (1, 2, 3, 0)), "TIFF"), [(1, 2, 3)]),
    "CMYK TIFF": (saved(Image.new("CMYK", (1, 1), (0, 255, 255, 0)), "TIFF"), [RED]),
    "CMYK JPEG": (saved(Image.new("CMYK", (1, 1), (0, 255, 255, 0)), "JPEG"), [RED]),
    "YCbCr TIFF": (
        saved(Image.new("YCbCr", (8, 8), (200, 128, 128)), "TIFF", compression="jpeg"),
        [200] * 8,
    ),
    "LAB TIFF": (saved(Image.new("LAB", (1, 1), (200, 128, 128)), "TIFF"), [194]),
    "animated GIF": (saved(Image.new("RGB", (2, 1), RED), "GIF", **TWO), [RED] * 2),
    "animated PNG": (saved(Image.new("RGB", (2, 1), RED), "PNG", **TWO), [RED] * 2),
    "animated WebP": (
        saved(Image.new("RGB", (2, 1), RED), "WEBP", lossless=True, **TWO),
        [RED] * 2,
    ),
    "TIFF of two pages": (saved(Image.new("RGB", (2, 1), RED), "TIFF", **TWO), [RED] * 2),
    "BMP": (saved(Image.new("RGB", (1, 1), (1, 2, 3)), "BMP"), [(1, 2, 3)]),
    "damaged EXIF": (png(1, 8, 2, b"\1\2\3", b"eXIfgarbage"), [(1, 2, 3)]),
}


@pytest.mark.parametrize("name", DECODED)
def test_files_are_decoded_by_their_bit_depth_over_white(name, tmp_path):
    content, pixels = DECODED[name]
    wanted = np.array([value if isinstance(value, tuple) else (value,) * 3 for value in pixels])
    np.testing.assert_array_equal(np.asarray(decode_image(content))[0], wanted)
    path = epath.Path(tmp_path / "a")
    path.write_bytes(content)
    np.testing.assert_array_equal(read_rgb(path)[0], wanted)


ZIP_BOMB = zlib.compress(bytes(70_000_000))
UNREADABLE = {
    "float TIFF": (saved(array([0, 0.5, 1], np.float32), "TIFF"), "floating-point numbers, whose"),
    "PFM": (b"Pf\n1 1\n-1.0\n" + bytes(4), "floating-point numbers, whose|format"),
    "float TIFF, 64 bits": (tiff(64, 3, bytes(8), 1), "format"),
    "negative, 16 bits": (tiff(16, 2, b"\xff\xff", 1), "negative numbers, whose range"),
    "negative, 32 bits": (saved(array([-1, 9], np.int32), "TIFF"), "negative numbers, whose range"),
    "signed, 8 bits": (tiff(8, 2, b"\xff", 1), "signed numbers, whose range"),
    "16 bits in 32": (saved(array([0, 65535], np.int32), "TIFF"), "none is above 65535, whose"),
    "24 bits in 32": (tiff(32, 1, struct.pack("<I", 2**24 - 1), 1), "none is above 16777215"),
    "text": (b"hello", "format isn't one that Pillow reads"),
    "empty": (b"", "format isn't one that Pillow reads"),
    "Git LFS pointer": (
        b"version https://git-lfs.github.com/spec/v1\n",
        r"format isn't one .*\(it is a Git LFS pointer: run `git lfs pull`\)",
    ),
    "truncated JPEG": (saved(Image.new("RGB", (99, 99)), "JPEG")[:-30], "truncated"),
    "huge header": (png(60_000, 8, 2, b"", height=60_000), "3600000000 pixels.*bomb"),
    "text that expands": (png(1, 8, 2, b"abc", b"zTXta\0\0" + ZIP_BOMB), "[Tt]oo [Ll]arge"),
    "profile that expands": (png(1, 8, 2, b"abc", b"iCCPa\0\0" + ZIP_BOMB), "[Tt]oo [Ll]arge"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_decoded_is_refused_by_file(name, tmp_path):
    content, match = UNREADABLE[name]
    with pytest.raises(UnreadableImage, match=match):
        decode_image(content)
    path = epath.Path(tmp_path / "a.png")
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"a.png can't be read as an image .*{match}"):
        read_rgb(path)


def test_too_little_memory_makes_an_image_unreadable_and_skippable(tmp_path, monkeypatch):
    for i in range(9):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / f"{i}.png")
    load = Image.Image.convert

    def convert(image, *args):
        if image.getpixel((0, 0))[0] == 3:
            raise MemoryError
        return load(image, *args)

    monkeypatch.setattr(Image.Image, "convert", convert)
    config = tiny_config(batch_size=9)
    config.data.update(source="folder", dir=str(tmp_path))
    config.model.update(channels=3, num_classes=0)
    with pytest.raises(UserError, match="3.png can't be read: it takes more memory than there is"):
        next(data.make_iterator(data.open_source(config), config))
    config.data.skip_corrupt = True
    assert len(next(data.make_iterator(data.open_source(config), config))["x"]) == 9


@pytest.mark.parametrize("alpha", [0, 1, 127, 255])
def test_composition_equals_its_formula_and_opaque_pixels_are_unchanged(alpha):
    colours = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
    image = Image.fromarray(colours)
    image.putalpha(alpha)
    found = np.asarray(decode_image(saved(image, "PNG"), background="#102030"))
    share = alpha / 255
    wanted = colours * share + np.array([0x10, 0x20, 0x30]) * (1 - share)
    np.testing.assert_allclose(found, wanted, atol=0.501)


def test_scaling_of_16_bits_equals_its_formula():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    found = np.asarray(decode_image(saved(Image.fromarray(values), "PNG"), "L"))
    np.testing.assert_array_equal(found, np.round(values / 257))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8])
def test_images_are_upright(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.repeat(np.repeat(np.arange(6).reshape(2, 3) * 50, 8, 0), 8, 1).astype(np.uint8)
    # By the definition in EXIF: which side the first row and the first column of the file show.
    turned = {1: pixels, 2: pixels[:, ::-1], 3: pixels[::-1, ::-1], 4: pixels[::-1]}
    turned |= {5: pixels.T, 6: np.rot90(pixels, -1), 7: pixels[::-1, ::-1].T, 8: np.rot90(pixels)}
    content = saved(Image.fromarray(pixels), kind, exif=exif)
    found = np.asarray(decode_image(content, "L"), np.float32)
    np.testing.assert_allclose(found, turned[orientation], atol=12)


def test_the_background_is_a_field_of_the_config(tmp_path):
    for i in range(8):
        Image.new("RGBA", (8, 8), (200, 0, 0, 0)).save(tmp_path / f"{i}.png")
    config = tiny_config()
    config.data.update(source="folder", dir=str(tmp_path), background="#0000ff")
    config.model.update(channels=3, num_classes=0)
    config.sampling.guidance_scale = 1.0
    found = next(data.make_iterator(data.open_source(config), config))["x"]
    assert (found == (-1, -1, 1)).all()
    for wrong in ("whitish", "#12345", "#00000080", ""):
        config.data.background = wrong
        with pytest.raises(UserError, match=f"config.data.background='{wrong}' isn't an opaque"):
            config_lib.build(config)


def test_evaluation_refuses_png_files_with_a_transparent_colour(tmp_path):
    (tmp_path / "a.png").write_bytes(png(2, 8, 2, bytes(6), b"tRNS" + bytes(6)))
    with pytest.raises(UserError, match="a.png has mode RGB with a transparent colour: save"):
        open_images(epath.Path(tmp_path))


def adm_crop(image, size):
    """ADM's centre crop, from openai/guided-diffusion."""
    while min(*image.size) >= 2 * size:
        image = image.resize(tuple(x // 2 for x in image.size), resample=Image.Resampling.BOX)
    scale = size / min(*image.size)
    image = image.resize(tuple(round(x * scale) for x in image.size), Image.Resampling.BICUBIC)
    pixels = np.array(image)
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return pixels[top : top + size, left : left + size]


@pytest.mark.parametrize("seed", range(30))
def test_the_crop_is_that_of_adm(seed):
    rng = np.random.default_rng(seed)
    size, short = int(rng.choice([8, 33, 64])), int(rng.integers(1, 200))
    long = int(short * np.exp(rng.uniform(0, np.log(15))))
    shape = (short, long, 3) if seed % 2 else (long, short, 3)
    image = Image.fromarray(rng.integers(0, 256, shape, np.uint8))
    np.testing.assert_array_equal(np.asarray(centre_crop(image, size)), adm_crop(image, size))


@pytest.mark.parametrize("seed", range(20))
def test_the_crop_of_a_long_image_is_close_to_that_of_adm(seed):
    rng = np.random.default_rng(seed)
    size, short = int(rng.choice([8, 33, 64])), int(rng.integers(1, 100))
    long = int(short * np.exp(rng.uniform(np.log(20), np.log(90))))
    colours = rng.integers(0, 256, (1 + long // 20, 1 + short // 20, 3), np.uint8)
    image = Image.fromarray(colours).resize((short, long), Image.Resampling.BICUBIC)
    image = image.transpose(Image.Transpose.TRANSPOSE) if seed % 2 else image
    found, wanted = np.asarray(centre_crop(image, size)), adm_crop(image, size)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2)


def test_long_images_take_no_more_memory_than_their_crop():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for width, height in ((1, 20_000), (2, 65_000), (65_000, 2)):
        content = saved(Image.new("RGB", (width, height), (1, 2, 3)), "PNG")
        found = decode_pixels(content, 512, 3)
        assert (found == (1, 2, 3)).all()
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert kilobytes < 100e3

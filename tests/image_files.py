"""Write image files with the bit depths and chunks that Pillow can't write."""

import io
import struct
import zlib

from PIL import Image


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, bits: int, colour: int, row: bytes, *chunks: bytes, height: int = 1) -> bytes:
    """A PNG of one row, by the numbers of its specification."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = [(b"IHDR", header), *((c[:4], c[4:]) for c in chunks)]
    parts += [(b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*part) for part in parts)


def tiff(bits: int, sample_format: int, data: bytes, width: int, white_is_zero=False) -> bytes:
    """A little-endian grey TIFF of one row; sample_format is 1 unsigned, 2 signed, 3 float."""
    tags = [(256, width), (257, 1), (258, bits), (259, 1), (262, 0 if white_is_zero else 1)]
    tags += [(273, 8 + 2 + 12 * 10 + 4), (277, 1), (278, 1), (279, len(data)), (339, sample_format)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II" + struct.pack("<HIH", 42, 8, len(tags)) + entries + struct.pack("<I", 0) + data


def saved(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()

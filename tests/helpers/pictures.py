"""Image files that Pillow cannot write, and one good file of every supported format, mode and compression."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

PICTURE = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """``image`` as a file of Pillow's format ``kind``."""
    buffer = io.BytesIO()
    if "append_images" in options:
        options["append_images"] = [frame.copy() for frame in options["append_images"]]
    image.copy().save(
        buffer, kind, **options
    )  # a copy, because Pillow stores settings of one format in the image, which break other formats
    return buffer.getvalue()


def png(width: int, height: int, bits: int = 8, colour: int = 2, rows: bytes = b"", extra: bytes = b"") -> bytes:
    """A PNG of colour type ``colour`` (2: RGB); without ``rows``, a header with no pixels behind it."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    data = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


def chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk of a PNG, with its length and checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def tiff(
    width: int, height: int, bits: int, data: bytes, samples: int = 1, photometric: int = 1, kind: int = 1
) -> bytes:
    """An uncompressed little-endian TIFF in one strip; ``kind`` 1: unsigned, 2: signed, 3: floating point."""
    tags = {
        256: (4, [width]), 257: (4, [height]), 258: (3, [bits] * samples), 259: (3, [1]), 262: (3, [photometric]),
        273: (4, [0]), 277: (3, [samples]), 278: (4, [height]), 279: (4, [len(data)]), 339: (3, [kind] * samples),
    }  # fmt: skip
    far_at = 8 + 2 + 12 * len(tags) + 4
    far, entries = b"", b""
    far_size = sum(2 * len(values) for code, values in tags.values() if code == 3 and len(values) > 2)
    tags[273] = (4, [far_at + far_size])
    for tag, (code, values) in tags.items():
        packed = struct.pack(f"<{len(values)}{'H' if code == 3 else 'I'}", *values)
        if len(packed) > 4:
            packed, far = struct.pack("<I", far_at + len(far)), far + packed
        entries += struct.pack("<HHI", tag, code, len(values)) + packed.ljust(4, b"\0")
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + far + data


def ycck(picture: np.ndarray) -> bytes:
    """A JPEG of four ink channels stored as YCbCr and black, with Adobe's marker for transform 2."""
    inverted = Image.fromarray(255 - picture).convert("YCbCr")
    planes = [255 - np.asarray(plane) for plane in inverted.split()]
    stored = np.dstack([*planes, np.zeros(picture.shape[:2], np.uint8)])
    data = encoded(Image.frombytes("CMYK", picture.shape[1::-1], stored.tobytes()), "JPEG", quality=95)
    mark = data.index(b"Adobe") + 11
    assert data[mark] == 0
    return data[:mark] + b"\x02" + data[mark + 1 :]


def kinds() -> dict[str, bytes]:
    """One good file, 40 x 56, of every supported format, mode and compression."""
    image, turned = Image.fromarray(PICTURE), Image.Exif()
    turned[0x0112] = 6
    wide = Image.fromarray(PICTURE[..., 0].astype(np.uint16) * 257)
    others = [image.rotate(180)]
    return {
        "exif.jpg": encoded(image, "JPEG", exif=turned),
        "progressive.jpg": encoded(image, "JPEG", progressive=True),
        "cmyk.jpg": encoded(image.convert("CMYK"), "JPEG"),
        "ycck.jpg": ycck(PICTURE),
        "several.jpg": encoded(image, "MPO", save_all=True, append_images=others),
        "rgb.png": encoded(image, "PNG", exif=turned),
        "palette.png": encoded(image.convert("P"), "PNG", transparency=3),
        "grey16.png": encoded(wide, "PNG"),
        "moving.png": encoded(image, "PNG", save_all=True, append_images=others),
        "lossy.webp": encoded(image, "WEBP"),
        "lossless.webp": encoded(image, "WEBP", lossless=True),
        "moving.webp": encoded(image, "WEBP", lossless=True, save_all=True, append_images=others),
        "plain.tif": encoded(image, "TIFF"),
        "lzw.tif": encoded(image, "TIFF", compression="tiff_lzw"),
        "jpeg.tif": encoded(image, "TIFF", compression="jpeg"),
        "grey16.tif": encoded(wide, "TIFF"),
        "pages.tif": encoded(image, "TIFF", save_all=True, append_images=others),
        "rgb.bmp": encoded(image, "BMP"),
    }


def image_of_noise(height: int = 120, width: int = 160) -> np.ndarray:
    """An RGB image of 8 bits without any structure."""
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)

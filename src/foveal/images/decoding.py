"""Decode opened images into arrays: damage, colour modes, 16 bits, orientation."""

from __future__ import annotations

import logging
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, TiffImagePlugin

from ..errors import InputError
from . import tiff

_BAND_PIXELS = 1 << 22  # converted at a time, so that memory holds a large image at most twice

# What Pillow's decoders and metadata readers raise on damaged files; its warnings become exceptions only where the
# application asks for it.
_DAMAGE = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, AttributeError, ZeroDivisionError,
    OverflowError, struct.error, UserWarning,
)  # fmt: skip
_LOG = logging.getLogger(__name__)

#: Pillow has no 16-bit colours: it keeps the high byte of each value. With the other byte order it keeps the low byte.
OTHER_BYTE_ORDER = {f"{mode};16{a}": f"{mode};16{b}" for mode in ("RGB", "RGBA") for a, b in ("BL", "LB", "NB")}


@contextmanager
def one_line_errors(name: str) -> Iterator[None]:
    """Turn every error of a decoder into an InputError of one line that starts with the name of the file."""
    try:
        yield
    except MemoryError as error:
        raise InputError(f"{name}: not enough memory to decode it") from error
    except Image.DecompressionBombError as error:  # from Pillow's WebP reader
        raise InputError(f"{name}: {error}") from error
    except _DAMAGE as error:
        raise InputError(f"{name}: damaged or truncated ({' '.join(str(error).split())})") from error


def decode(image: Image.Image, file: BinaryIO | None, name: str, allow_truncated: bool) -> None:
    """Decode an image in place, PNG only after a check of its checksums.

    Raises:
        OSError, SyntaxError: the file is damaged or truncated, and ``allow_truncated`` is off.
    """
    problem = None
    for step in (lambda: _check_png_checksums(file) if file and image.format == "PNG" else None, image.load):
        try:
            step()
        except (OSError, SyntaxError) as error:
            if not allow_truncated:
                raise
            problem = error
    if problem and isinstance(image, ImageFile.ImageFile):
        image.tile = []  # Pillow keeps what it has decoded; without tiles it does not start again
        _LOG.warning("%s: damaged or truncated (%s); decoded as far as possible", name, problem)


def decode_rgb(image: Image.Image, file: BinaryIO | None, name: str, allow_truncated: bool) -> NDArray[np.uint8]:
    """Decode an image to ``(H, W, 3)`` uint8, not yet upright; the arguments are those of :func:`decode`."""
    if file and image.format == "JPEG":
        return _jpeg_to_rgb(image, file, name, allow_truncated)
    decode_colours(image, file, name, allow_truncated)
    return to_rgb(image)


def decode_colours(image: Image.Image, file: BinaryIO | None, name: str, allow_truncated: bool) -> None:
    """Decode an image in place as :func:`decode`, and check that a PNG's palette has a colour for every index.

    Raises:
        ValueError: it has not; Pillow would take black.
    """
    palette = image.palette if image.format == "PNG" and image.mode == "P" else None
    entries = len(palette.palette) // 3 if palette else 0
    decode(image, file, name, allow_truncated)
    if entries and (highest := int(np.asarray(image).max())) >= entries:
        raise ValueError(f"index {highest} in a palette of {entries} colours")


def to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Convert a decoded image to ``(H, W, 3)`` uint8: 16-bit greys scaled, transparency composed over white."""
    out = np.empty((image.height, image.width, 3), np.uint8)
    white, rows = _white_level(image), max(1, _BAND_PIXELS // image.width)
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        out[top : top + rows] = _wide_grey_to_8_bit(band, *white) if band.mode.startswith("I") else _to_rgb_8_bit(band)
    return out


def wide_grey_to_rgb(image: Image.Image) -> NDArray[np.uint16]:
    """Convert a decoded 16-bit grey to ``(H, W, 3)`` uint16 of 0..65535, 0 being black."""
    white, negative = _white_level(image)
    pixels = (np.asarray(image).astype(np.uint32) * 65535 // white).clip(0, 65535).astype(np.uint16)
    return np.repeat((65535 - pixels if negative else pixels)[..., None], 3, axis=2)


def read_16_bit_colours(image: Image.Image, again: Image.Image) -> NDArray[np.uint16]:
    """16-bit colours from the high bytes in ``image`` and the low bytes in the same file.

    Args:
        image: decoded, with a raw mode in :data:`OTHER_BYTE_ORDER`.
        again: the same file, opened again and not yet decoded.
    """
    assert isinstance(again, ImageFile.ImageFile)
    other = OTHER_BYTE_ORDER[raw_mode(again)]
    tiles: Any = again.tile
    again.tile = [
        tile._replace(args=other if isinstance(tile.args, str) else (other, *tile.args[1:])) for tile in tiles
    ]
    again.load()
    wide = np.asarray(image).astype(np.uint16) << np.uint16(8)
    wide |= np.asarray(again)
    return wide


def raw_mode(image: Image.Image) -> str:
    """Layout of the values in the file, as Pillow names it; empty for images that are not in a file, or decoded."""
    tile: Any = image.tile[0] if isinstance(image, ImageFile.ImageFile) and image.tile else None
    if tile is None:
        return ""
    return tile[3] if isinstance(tile[3], str) else tile[3][0]


def grey_step(image: Image.Image) -> int:
    """Factor by which Pillow multiplies greys of 2 and 4 bits to fill 0..255, which is wrong for class ids."""
    return {"L;2": 85, "L;4": 17}.get(raw_mode(image), 1)


def apply_orientation(pixels: NDArray[Any], image: Image.Image) -> NDArray[Any]:
    """Apply the orientation of an image; Pillow's TIFF reader has already done so when decoding."""
    return upright(pixels, orientation_of(image))


def orientation_of(image: Image.Image) -> int:
    """The orientation of an image, 1 to 8.

    Raises:
        ValueError: EXIF data that Pillow would take too long to read.
    """
    tiff.check_exif(_exif_of(image))
    return image.getexif().get(0x0112, 1)


def _exif_of(image: Image.Image) -> bytes:
    """The EXIF data where Pillow finds it: older PNG files have it as hexadecimal text."""
    if exif := image.info.get("exif"):
        return exif
    text = image.info.get("Raw profile type exif", "")
    return bytes.fromhex("".join(text.split("\n")[3:])) if isinstance(text, str) else b""


def upright(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Apply an orientation, 1 to 8 (EXIF 2.32, tag 0x0112), to ``(H, W, ...)``."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _check_png_checksums(file: BinaryIO) -> None:
    """Compare all checksums up to the end chunk: Pillow skips the checksum of the last chunk of pixels."""
    position, kind = file.tell(), b""  # Pillow continues to read from this position
    try:
        end = file.seek(0, 2)
        file.seek(8)
        while kind != b"IEND":
            head = file.read(8)
            length, kind = int.from_bytes(head[:4]), head[4:]
            if length > end:
                raise OSError("image file is truncated")
            data, checksum = file.read(length), file.read(4)
            if len(checksum) < 4:
                raise OSError("image file is truncated")
            if zlib.crc32(kind + data) != int.from_bytes(checksum):
                raise OSError(f"wrong checksum of {kind.decode('ascii', 'replace')}")
    finally:
        file.seek(position)


def _jpeg_to_rgb(image: Image.Image, file: BinaryIO, name: str, allow_truncated: bool) -> NDArray[np.uint8]:
    """Decode a JPEG to the same bits as Pillow, but treat libjpeg's warnings, which Pillow ignores, as errors."""
    import simplejpeg

    position = file.tell()
    file.seek(0)
    data = file.read()
    file.seek(position)
    space = "CMYK" if image.mode == "CMYK" else "RGB"
    try:
        if simplejpeg.decode_jpeg_header(data, strict=False)[:2] != (image.height, image.width):
            raise OSError("two sizes in one file")
        pixels = simplejpeg.decode_jpeg(data, space, strict=True)
    except ValueError as error:
        if "subsampling" in str(error):  # a rare one, which Pillow may support
            decode(image, file, name, allow_truncated)
            return to_rgb(image)
        if not allow_truncated:
            raise
        pixels = simplejpeg.decode_jpeg(data, space, strict=False)
        _LOG.warning("%s: damaged or truncated (%s); decoded as far as possible", name, error)
    if space == "CMYK":  # stored inverted, as Adobe writes it and other programs follow
        return to_rgb(Image.frombuffer("CMYK", image.size, pixels, "raw", "CMYK;I", 0, 1))
    return pixels


def _to_rgb_8_bit(image: Image.Image) -> NDArray[np.uint8]:
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _white_level(image: Image.Image) -> tuple[int, bool]:
    """(largest value of a 16-bit grey, whether it is black): TIFF also has greys of 12 bits, and negatives."""
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    bits = tags.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0]
    return (1 << bits) - 1, tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0


def _wide_grey_to_8_bit(image: Image.Image, white: int, negative: bool) -> NDArray[np.uint8]:
    wide = np.asarray(image).astype(np.uint32)
    grey = ((np.minimum(wide, white) * 255 + white // 2) // white).astype(np.uint8)
    if negative:
        grey = 255 - grey
    if isinstance(key := image.info.get("transparency"), int):
        grey[wide == key] = 255
    return grey[..., None]

"""Images from files, bytes and arrays, as the eye sees them or with all that they carry.

Every road through Foveal (training, prediction, export, evaluation) reads images here, so that they cannot drift apart.
"""

from __future__ import annotations

import io
import logging
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import BmpImagePlugin, Image, ImageFile, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin

from ..errors import ConfigError, InputError

MAX_PIXELS = 100_000_000  #: larger images are refused before decoding, unless the caller or LIMIT says otherwise
LIMIT = "FOVEAL_MAX_PIXELS"  #: environment variable with another number
MAX_FILE_BYTES = 2 << 30
_BAND_PIXELS = 1 << 22  # converted at a time, so that a huge image is in memory twice at most


class _TiffFile(TiffImagePlugin.TiffImageFile):
    """Reads without Pillow's own limit, which is the whole process's; ours has been checked before."""

    def load_prepare(self) -> None:
        if getattr(self, "_im", None) is None:
            self.im = Image.new(self.mode, getattr(self, "_tile_size", self.size), None).im
        super().load_prepare()


# Told by their first bytes, whatever the file's name. Opened by class: Image.open would try further formats, and has
# a limit of its own that can only be moved for the whole process.
_FORMATS: dict[str, tuple[tuple[bytes, ...], tuple[str, ...], Callable[[BinaryIO, str], ImageFile.ImageFile]]] = {
    "JPEG": ((b"\xff\xd8\xff",), (".jpg", ".jpeg"), JpegImagePlugin.JpegImageFile),
    "PNG": ((b"\x89PNG\r\n\x1a\n",), (".png",), PngImagePlugin.PngImageFile),
    "WebP": ((b"RIFF",), (".webp",), WebPImagePlugin.WebPImageFile),
    "TIFF": ((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), (".tif", ".tiff"), _TiffFile),
    "BMP": ((b"BM",), (".bmp",), BmpImagePlugin.BmpImageFile),
}
SUFFIXES = tuple(suffix for _, suffixes, _ in _FORMATS.values() for suffix in suffixes)
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "HSV", "I;16", "I;16L", "I;16B")

# What Pillow's decoders and readers of metadata raise on files that somebody has broken; its warnings are raised only
# where the application says so.
_DAMAGE = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, AttributeError, ZeroDivisionError,
    OverflowError, struct.error, UserWarning,
)  # fmt: skip
_LOG = logging.getLogger(__name__)

ImageLike = str | Path | bytes | Image.Image | NDArray[np.uint8] | NDArray[np.uint16]  # 16 bits: to upscale only


def read_image(
    source: ImageLike, *, name: str = "", max_pixels: int | None = None, allow_truncated: bool = False
) -> NDArray[np.uint8]:
    """Read an image as the eye sees it: upright, 8 bits, RGB.

    Orientation tags are applied. 16-bit greys are scaled to 8 bits, not clipped. Transparency is composed over white.
    Animated files and those of several pages give their first. CMYK, palettes, grey and 1-bit images become RGB. The
    format (JPEG, PNG, WebP, TIFF, BMP) is told by the content, not by the name.

    Args:
        source: path, content of a file, Pillow image, or uint8 array ``(H, W)``, ``(H, W, 3)`` or ``(H, W, 4)``.
        name: what messages call it; default: the path, or "image".
        max_pixels: refuse images with more pixels, from the header alone; default: what the environment variable
            ``FOVEAL_MAX_PIXELS`` says, else 100 million.
        allow_truncated: take what can be decoded of a truncated or damaged file, and log a warning; what is missing is
            black or grey.

    Returns:
        ``(H, W, 3)`` uint8.

    Raises:
        InputError: missing, unreadable, damaged, truncated, too large, of an unsupported format, or of a range that
            nobody can know (floating point, 32-bit integers).
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    name = name or (str(source) if isinstance(source, str | Path) else "image")
    with _one_line(name), _opened(source, name, max_pixels) as (image, file):
        _check_mode(image, name)
        if file and image.format == "JPEG":
            pixels = _jpeg_to_rgb(image, file, name, allow_truncated)
        else:
            _decode(image, file, name, allow_truncated)
            pixels = _to_rgb(image)
        return _upright(pixels, image)


@dataclass(frozen=True)
class Picture:
    """A picture with all that it carries, upright.

    Attributes:
        pixels: ``(H, W, 3)`` uint8 or uint16; grey ones have three equal channels.
        alpha: ``(H, W)`` of the same type, ``None`` where nothing is transparent.
        icc: colour profile, empty where there is none.
        grey: whether it was a grey picture.
    """

    pixels: NDArray[Any]
    alpha: NDArray[Any] | None = None
    icc: bytes = b""
    grey: bool = False


def read_picture(source: ImageLike, *, name: str = "", max_pixels: int | None = None) -> Picture:
    """Read an image to give it back changed: 16 bits, alpha, grey and the colour profile are kept.

    Arguments are those of :func:`read_image`; arrays may be uint16 as well.

    Raises:
        InputError: as :func:`read_image`, and for what could not be given back as it was: several pictures in one file,
            CMYK with a profile, 16-bit grey with transparency.
    """
    if isinstance(source, np.ndarray):
        return _picture_of_array(source)
    name = name or (str(source) if isinstance(source, str | Path) else "image")
    with _one_line(name), _opened(source, name, max_pixels) as (image, file):
        _check_mode(image, name)
        raw = _raw_mode(image)
        wide_grey, icc = image.mode.startswith("I"), image.info.get("icc_profile") or b""
        if (frames := getattr(image, "n_frames", 1)) > 1:
            raise InputError(f"{name}: {frames} pictures in one file; give them one by one")
        if image.mode == "CMYK" and icc:
            raise InputError(f"{name}: CMYK with a colour profile; convert it to RGB by that profile first")
        if raw == "LA;16B" or (wide_grey and "transparency" in image.info):
            raise InputError(f"{name}: 16-bit grey with transparency; convert it to RGBA first, which is read whole")
        grey = wide_grey or image.mode in ("1", "L", "LA")
        if file and image.format == "JPEG":
            return Picture(_upright(_jpeg_to_rgb(image, file, name, False), image), None, icc, grey)
        _decode(image, file, name, allow_truncated=False)
        if wide_grey:
            white, negative = _white(image)
            pixels = (np.asarray(image).astype(np.uint32) * 65535 // white).clip(0, 65535).astype(np.uint16)
            pixels = np.repeat((65535 - pixels if negative else pixels)[..., None], 3, axis=2)
        elif raw in _OTHER_HALF:
            with _opened(source, name, max_pixels) as (again, _):
                pixels = _wide(image, again, raw)
        else:
            transparent = image.has_transparency_data
            pixels = np.asarray(image.convert("RGBA")) if transparent else _to_rgb(image)
        return _split(_upright(pixels, image), icc, grey)


#: Pillow has no colours of 16 bits: it keeps the high halves. Asked for the other byte order it keeps the low ones.
_OTHER_HALF = {f"{mode};16{a}": f"{mode};16{b}" for mode in ("RGB", "RGBA") for a, b in ("BL", "LB", "NB")}


def _raw_mode(image: Image.Image) -> str:
    tile: Any = image.tile[0] if isinstance(image, ImageFile.ImageFile) and image.tile else None
    if tile is None:
        return ""
    return tile[3] if isinstance(tile[3], str) else tile[3][0]


def _wide(image: Image.Image, again: Image.Image, raw: str) -> NDArray[np.uint16]:
    """16 bits from the high halves in ``image`` and the low ones of the same file, not yet decoded."""
    assert isinstance(again, ImageFile.ImageFile)
    other = _OTHER_HALF[raw]
    tiles: Any = again.tile
    again.tile = [
        tile._replace(args=other if isinstance(tile.args, str) else (other, *tile.args[1:])) for tile in tiles
    ]
    again.load()
    wide = np.asarray(image).astype(np.uint16) << np.uint16(8)
    wide |= np.asarray(again)
    return wide


def _split(pixels: NDArray[Any], icc: bytes, grey: bool) -> Picture:
    if pixels.shape[2] == 3:
        return Picture(pixels, None, icc, grey)
    return Picture(np.ascontiguousarray(pixels[..., :3]), np.ascontiguousarray(pixels[..., 3]), icc, grey)


def _picture_of_array(array: NDArray[Any]) -> Picture:
    if array.dtype not in (np.uint8, np.uint16):
        raise InputError(f"array of {array.dtype}: expected uint8 or uint16")
    if array.size == 0:
        raise InputError(f"array of shape {array.shape}: no pixels")
    if array.ndim == 2:
        return Picture(np.repeat(array[..., None], 3, axis=2), grey=True)
    if array.ndim == 3 and array.shape[2] in (3, 4):
        return _split(array, b"", False)
    raise InputError(f"array of shape {array.shape}: expected (H, W), (H, W, 3) or (H, W, 4)")


def read_mask(
    source: str | Path | bytes | Image.Image, *, name: str = "", max_pixels: int | None = None
) -> NDArray[np.int32]:
    """Read an index mask, ``(H, W)`` int32: one class id per pixel, orientation tags applied.

    Arguments are those of :func:`read_image`.

    Raises:
        InputError: unreadable, a colour image where indices are expected, or a JPEG, which alters them.
    """
    name = name or (str(source) if isinstance(source, str | Path) else "mask")
    with _one_line(name), _opened(source, name, max_pixels) as (image, file):
        if image.mode not in ("L", "P", "I;16", "I;16B", "I", "1"):
            raise InputError(f"{name}: a {image.mode} image where a mask of class indices is expected")
        if image.format == "JPEG":
            raise InputError(f"{name}: JPEG alters class indices; store masks as PNG")
        step = _grey_step(image)
        _decode(image, file, name, allow_truncated=False)
        return _upright(np.asarray(image).astype(np.int32) // step, image)


def pixel_limit() -> int:
    """Pixels that one image may have: ``FOVEAL_MAX_PIXELS`` where it is set, else :data:`MAX_PIXELS`.

    Raises:
        ConfigError: it is set to something that is no number.
    """
    text = os.environ.get(LIMIT, "")
    try:
        return int(float(text)) if text else MAX_PIXELS
    except (ValueError, OverflowError) as error:
        raise ConfigError(f"environment variable {LIMIT}={text!r}: expected a number of pixels, such as 4e8") from error


@contextmanager
def _one_line(name: str) -> Iterator[None]:
    """Whatever goes wrong inside is an InputError of one line that starts with the file's name."""
    try:
        yield
    except MemoryError as error:
        raise InputError(f"{name}: not enough memory to decode it") from error
    except Image.DecompressionBombError as error:  # of Pillow's WebP reader
        raise InputError(f"{name}: {error}") from error
    except _DAMAGE as error:
        raise InputError(f"{name}: damaged or truncated ({' '.join(str(error).split())})") from error


@contextmanager
def _opened(
    source: str | Path | bytes | Image.Image, name: str, max_pixels: int | None
) -> Iterator[tuple[Image.Image, BinaryIO | None]]:
    """Check format and size from the header, before anything is decoded; with the file where there is one."""
    limit = pixel_limit() if max_pixels is None else max_pixels
    if isinstance(source, Image.Image):
        _check_pixels(name, source.size, limit)
        yield source.copy(), None  # the caller's own stays open
        return
    with _file(source, name) as file:
        kind, reader = _sniff(file, name)
        # Without the path Pillow does not map the file, which turns some TIFFs wrongly (5 to 8, grey, uncompressed).
        with reader(file, "") as image:
            _check_pixels(name, image.size, limit)
            if isinstance(source, str | Path) and Path(source).suffix.lower() not in _FORMATS[kind][1]:
                _LOG.info("%s: a %s by its content", name, kind)
            yield image, file


def _file(source: str | Path | bytes, name: str) -> BinaryIO:
    try:
        if isinstance(source, bytes):
            size = len(source)
        elif Path(source).is_dir():
            raise InputError(f"{name}: a folder where an image is expected")
        else:
            size = Path(source).stat().st_size
        if size == 0:
            raise InputError(f"{name}: empty file")
        if size > MAX_FILE_BYTES:
            raise InputError(f"{name}: {size >> 20} MiB file is above the limit of {MAX_FILE_BYTES >> 20} MiB")
        return io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb")
    except FileNotFoundError as error:
        raise InputError(f"{name}: no such file or folder") from error
    except (OSError, ValueError) as error:  # a NUL in the name is a ValueError
        raise InputError(f"{name}: {getattr(error, 'strerror', None) or error}") from error


def _sniff(file: BinaryIO, name: str) -> tuple[str, Callable[[BinaryIO, str], ImageFile.ImageFile]]:
    start = file.read(16)
    file.seek(0)
    for kind, (signatures, _, reader) in _FORMATS.items():
        if start.startswith(signatures) and (kind != "WebP" or start[8:12] == b"WEBP"):
            return kind, reader
    raise InputError(f"{name}: not an image of a format that is read ({', '.join(_FORMATS)}), or damaged")


def _check_pixels(name: str, size: tuple[int, int], limit: int) -> None:
    pixels = size[0] * size[1]
    if pixels > limit:
        raise InputError(
            f"{name}: {size[0]}x{size[1]} is {pixels / 1e6:.0f} megapixels, above the limit of {limit / 1e6:.0f} for "
            f"one image: shrink it, cut it up, or raise the limit with the environment variable {LIMIT}"
        )
    if pixels == 0:
        raise InputError(f"{name}: {size[0]}x{size[1]}, an image without pixels")


def _check_mode(image: Image.Image, name: str) -> None:
    if image.mode == "F":
        raise InputError(f"{name}: floating-point image; its range is unknown, convert it to 8 or 16 bits")
    if image.mode == "I" and image.format != "PNG":  # where older Pillow has 16 bits
        raise InputError(f"{name}: 32-bit image; its range is unknown, convert it to 8 or 16 bits")
    if image.mode not in (*_MODES, "I"):
        raise InputError(f"{name}: a {image.mode} image; convert it to RGB")


def _decode(image: Image.Image, file: BinaryIO | None, name: str, allow_truncated: bool) -> None:
    problem = None
    for step in (lambda: _check_png(file) if file and image.format == "PNG" else None, image.load):
        try:
            step()
        except (OSError, SyntaxError) as error:
            if not allow_truncated:
                raise
            problem = error
    if problem and isinstance(image, ImageFile.ImageFile):
        image.tile = []  # Pillow keeps what it has decoded; without tiles it does not begin again
        _LOG.warning("%s: damaged or truncated (%s); taken as far as it goes", name, problem)


def _check_png(file: BinaryIO) -> None:
    """Compare every checksum up to the end mark: Pillow leaves out that of the last piece of the pixels."""
    position, kind = file.tell(), b""  # Pillow reads on from there
    try:
        file.seek(8)
        while kind != b"IEND":
            head = file.read(8)
            length, kind = int.from_bytes(head[:4]), head[4:]
            data, checksum = file.read(length), file.read(4)
            if len(checksum) < 4:
                raise OSError("image file is truncated")
            if zlib.crc32(kind + data) != int.from_bytes(checksum):
                raise OSError(f"wrong checksum of {kind.decode('ascii', 'replace')}")
    finally:
        file.seek(position)


def _jpeg_to_rgb(image: Image.Image, file: BinaryIO, name: str, allow_truncated: bool) -> NDArray[np.uint8]:
    """Decode to the bit as Pillow does, but heed what libjpeg complains of, which Pillow does not hear."""
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
        if "subsampling" in str(error):  # a rare one, which Pillow may know
            _decode(image, file, name, allow_truncated)
            return _to_rgb(image)
        if not allow_truncated:
            raise
        pixels = simplejpeg.decode_jpeg(data, space, strict=False)
        _LOG.warning("%s: damaged or truncated (%s); taken as far as it goes", name, error)
    if space == "CMYK":  # stored inverted, as Adobe does and all follow
        return _to_rgb(Image.frombuffer("CMYK", image.size, pixels, "raw", "CMYK;I", 0, 1))
    return pixels


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    out = np.empty((image.height, image.width, 3), np.uint8)
    white, rows = _white(image), max(1, _BAND_PIXELS // image.width)
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        out[top : top + rows] = _grey16(band, *white) if band.mode.startswith("I") else _rgb8(band)
    return out


def _rgb8(image: Image.Image) -> NDArray[np.uint8]:
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _white(image: Image.Image) -> tuple[int, bool]:
    """(largest value of a 16-bit grey, whether it is black): TIFF has greys of 12 bits, and negatives."""
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    bits = tags.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0]
    return (1 << bits) - 1, tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0


def _grey16(image: Image.Image, white: int, negative: bool) -> NDArray[np.uint8]:
    wide = np.asarray(image).astype(np.uint32)
    grey = ((np.minimum(wide, white) * 255 + white // 2) // white).astype(np.uint8)
    if negative:
        grey = 255 - grey
    if isinstance(key := image.info.get("transparency"), int):
        grey[wide == key] = 255
    return grey[..., None]


def _grey_step(image: Image.Image) -> int:
    """What Pillow multiplies greys of 2 and 4 bits with, so that they look right; as class ids they are not."""
    return {"L;2": 85, "L;4": 17}.get(_raw_mode(image), 1)


def _upright(pixels: NDArray[Any], image: Image.Image) -> NDArray[Any]:
    """Apply the orientation tag (EXIF 2.32, tag 0x0112); Pillow's TIFF reader has done so on decoding."""
    turn = image.getexif().get(0x0112, 1)
    if turn in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if turn in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if turn in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _from_array(array: NDArray[Any]) -> NDArray[np.uint8]:
    if array.dtype != np.uint8:
        raise InputError(f"array of {array.dtype}: expected uint8 with values 0..255")
    if array.size == 0:
        raise InputError(f"array of shape {array.shape}: no pixels")
    if array.ndim == 2:
        return np.repeat(array[..., None], 3, axis=2)
    if array.ndim == 3 and array.shape[2] in (3, 4):
        return _to_rgb(Image.fromarray(array)) if array.shape[2] == 4 else array
    raise InputError(f"array of shape {array.shape}: expected (H, W), (H, W, 3) or (H, W, 4)")


def list_images(source: str | Path) -> list[Path]:
    """The image files below a folder in sorted order (hidden ones left out), or the one file that ``source`` is.

    Raises:
        InputError: nothing there.
    """
    source = Path(source)
    if source.is_dir():
        found = sorted(p for p in source.rglob("*") if is_image(p) and p.is_file())
        if not found:
            raise InputError(f"{source}: no images ({', '.join(SUFFIXES)}) in this folder")
        return found
    if not source.exists():
        raise InputError(f"{source}: no such file or folder")
    return [source]


def is_image(path: Path) -> bool:
    """Whether a file's name is that of an image; ``.name`` and ``._name`` (macOS) are not."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")

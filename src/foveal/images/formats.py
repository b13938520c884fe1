"""The image formats that Foveal reads: detect them by content, check their limits."""

from __future__ import annotations

import errno
import io
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from PIL import BmpImagePlugin, Image, ImageFile, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin

from ..errors import ConfigError, InputError
from . import chunks, tiff, tiff_pixels
from .npy import NPY
from .sources import MAX_FILE_BYTES as MAX_FILE_BYTES
from .sources import why_missing

MAX_PIXELS = 100_000_000  #: larger images are refused before decoding, unless the caller or LIMIT says otherwise
LIMIT = "FOVEAL_MAX_PIXELS"  #: environment variable that replaces MAX_PIXELS

_LOG = logging.getLogger(__name__)


class BandsError(InputError):
    """An image has other bands than red, green and blue, or grey, of 8 or 16 bits."""


class SizeError(InputError):
    """An image has more pixels than are decoded at once."""


class _Format(NamedTuple):
    signatures: tuple[bytes, ...]  # first bytes of the content
    suffixes: tuple[str, ...]
    reader: Callable[[BinaryIO, str], ImageFile.ImageFile]


# Each reader class is called directly: Image.open would try further formats, and its own pixel limit can only be
# changed for the whole process.
_FORMATS = {
    "JPEG": _Format((b"\xff\xd8\xff",), (".jpg", ".jpeg", ".jfif", ".jpe"), JpegImagePlugin.JpegImageFile),
    "PNG": _Format((b"\x89PNG\r\n\x1a\n",), (".png",), PngImagePlugin.PngImageFile),
    "WebP": _Format((b"RIFF",), (".webp",), WebPImagePlugin.WebPImageFile),
    "TIFF": _Format((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), (".tif", ".tiff"), tiff.TiffReader),
    "BMP": _Format((b"BM",), (".bmp",), BmpImagePlugin.BmpImageFile),
}
SUFFIXES = (*(suffix for kind in _FORMATS.values() for suffix in kind.suffixes), NPY)


def is_image(path: Path) -> bool:
    """Whether a file name has the suffix of an image; hidden files (``.name``, ``._name`` of macOS) do not count."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def pixel_limit() -> int:
    """Largest number of pixels of one image: ``FOVEAL_MAX_PIXELS`` if it is set, else :data:`MAX_PIXELS`.

    Raises:
        ConfigError: the environment variable is not a number.
    """
    text = os.environ.get(LIMIT, "")
    try:
        return int(float(text)) if text else MAX_PIXELS
    except (ValueError, OverflowError) as error:
        raise ConfigError(
            f"environment variable {LIMIT}={text!r}: expected a number of pixels, for example 4e8"
        ) from error


@contextmanager
def open_image(
    source: str | Path | bytes | Image.Image, name: str, max_pixels: int | None
) -> Iterator[tuple[Image.Image, BinaryIO | None]]:
    """Open an image and check its format and size from the header, before anything is decoded.

    Args:
        source: path, content of a file, or Pillow image.
        name: name of the image in messages.
        max_pixels: limit on the number of pixels; ``None``: :func:`pixel_limit`.

    Yields:
        The image, not yet decoded, and its open file; ``None`` instead of the file if ``source`` is a Pillow image.

    Raises:
        InputError: missing, empty, too large, or of an unsupported format.
    """
    limit = pixel_limit() if max_pixels is None else max_pixels
    if isinstance(source, Image.Image):
        check_pixels(name, source.size, limit)
        if isinstance(source, TiffImagePlugin.TiffImageFile):
            _check_bands(name, tiff.page_of(source))
        yield source.copy(), None  # a copy, so that the caller's image stays open
        return
    with open_file(source, name) as file:
        kind = detect_format(file, name)
        _check_content(file, kind, name, limit)
        # Pillow gets no path. With one it would memory-map the file, and then it applies orientations 5 to 8 wrongly to
        # uncompressed grey TIFFs.
        with _FORMATS[kind].reader(file, "") as image:
            check_pixels(name, image.size, limit)
            if isinstance(source, str | Path) and Path(source).suffix.lower() not in _FORMATS[kind].suffixes:
                _LOG.info("%s: read as %s, the format of its content", name, kind)
            yield image, file


def _check_content(file: BinaryIO, kind: str, name: str, limit: int) -> None:
    """Check what Pillow would take too long for, or silently get wrong."""
    if kind == "TIFF" and (found := tiff.pages(file, name, strict=False)):
        _check_bands(name, found[0])
        _check_stack(name, found)
        check_pixels(name, found[0].size, limit)
        if found[0].is_plain:
            tiff_pixels.check_places(found[0], name)
    elif kind == "PNG":
        chunks.check_png(file, name)
    elif kind == "BMP":
        chunks.check_bmp(file, name)


def _check_bands(name: str, page: tiff.Page) -> None:
    if page.has_lost_bands:
        raise BandsError(
            f"{name}: {page.describe()}, of which an RGB image would lose some: take a model with "
            f"in_chans={page.bands} (docs/bands.md), or save the bands to use as an RGB image"
        )


def _check_stack(name: str, found: list[tiff.Page]) -> None:
    """Refuse the bands of one image as grey pages of one size and type; of other files the first page is read."""
    if tiff.is_stack(found):
        raise BandsError(
            f"{name}: {len(found)} pages of one band each, of which an RGB image would have the first: take a model "
            f"with in_chans={len(found)} (docs/bands.md), or save the page to use as a file of its own"
        )


def open_file(source: str | Path | bytes, name: str) -> BinaryIO:
    """Open a file, or the content of one.

    Raises:
        InputError: missing, empty, too large, or a folder.
    """
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
        raise InputError(f"{name}: {why_missing(os.fsdecode(source))}") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
        too_long = getattr(error, "errno", None) == errno.ENAMETOOLONG
        reason = why_missing(os.fsdecode(source)) if too_long else getattr(error, "strerror", None) or error
        raise InputError(f"{name}: {reason}") from error


def detect_format(file: BinaryIO, name: str) -> str:
    """Name of the format ("JPEG", "PNG", "WebP", "TIFF", "BMP"), detected from the first bytes whatever the suffix.

    Raises:
        InputError: another format.
    """
    start = file.read(16)
    file.seek(0)
    for kind, (signatures, _, _) in _FORMATS.items():
        if start.startswith(signatures) and (kind != "WebP" or start[8:12] == b"WEBP"):
            return kind
    raise InputError(f"{name}: not an image in a supported format ({', '.join(_FORMATS)}), or damaged")


def stored_size(file: BinaryIO, kind: str) -> tuple[int, int]:
    """(W, H) of the image in an open file of a format that :func:`detect_format` names, before it is upright.

    Raises:
        Exception: whatever Pillow raises on a damaged header; see :func:`~.decoding.one_line_errors`.
    """
    with _FORMATS[kind].reader(file, "") as image:
        return image.size


def check_pixels(name: str, size: tuple[int, int], limit: int) -> None:
    """Raise a SizeError if an image of ``size`` (W, H) has more than ``limit`` pixels, an InputError if it has none."""
    pixels = size[0] * size[1]
    if pixels > limit:
        raise SizeError(
            f"{name}: {size[0]}x{size[1]} is {pixels / 1e6:.0f} megapixels, above the limit of {limit / 1e6:.0f} for "
            f"one image: shrink it, crop it, or raise the limit with the environment variable {LIMIT}"
        )
    if pixels == 0:
        raise InputError(f"{name}: {size[0]}x{size[1]}, an image without pixels")

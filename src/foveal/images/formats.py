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
from .sources import MAX_FILE_BYTES as MAX_FILE_BYTES
from .sources import why_missing

MAX_PIXELS = 100_000_000  #: larger images are refused before decoding, unless the caller or LIMIT says otherwise
LIMIT = "FOVEAL_MAX_PIXELS"  #: environment variable that replaces MAX_PIXELS

_LOG = logging.getLogger(__name__)


class _TiffFile(TiffImagePlugin.TiffImageFile):
    """Pillow's TIFF reader without its pixel limit, which is global to the process; ours was checked before."""

    def load_prepare(self) -> None:
        if getattr(self, "_im", None) is None:
            self.im = Image.new(self.mode, getattr(self, "_tile_size", self.size), None).im
        super().load_prepare()


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
    "TIFF": _Format((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), (".tif", ".tiff"), _TiffFile),
    "BMP": _Format((b"BM",), (".bmp",), BmpImagePlugin.BmpImageFile),
}
SUFFIXES = tuple(suffix for kind in _FORMATS.values() for suffix in kind.suffixes)


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
        _check_pixels(name, source.size, limit)
        yield source.copy(), None  # a copy, so that the caller's image stays open
        return
    with _open_file(source, name) as file:
        kind = _detect_format(file, name)
        # Pillow gets no path. With one it would memory-map the file, and then it applies orientations 5 to 8 wrongly to
        # uncompressed grey TIFFs.
        with _FORMATS[kind].reader(file, "") as image:
            _check_pixels(name, image.size, limit)
            if isinstance(source, str | Path) and Path(source).suffix.lower() not in _FORMATS[kind].suffixes:
                _LOG.info("%s: read as %s, the format of its content", name, kind)
            yield image, file


def _open_file(source: str | Path | bytes, name: str) -> BinaryIO:
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


def _detect_format(file: BinaryIO, name: str) -> str:
    """Key of :data:`_FORMATS`, detected from the first bytes whatever the suffix."""
    start = file.read(16)
    file.seek(0)
    for kind, (signatures, _, _) in _FORMATS.items():
        if start.startswith(signatures) and (kind != "WebP" or start[8:12] == b"WEBP"):
            return kind
    raise InputError(f"{name}: not an image in a supported format ({', '.join(_FORMATS)}), or damaged")


def _check_pixels(name: str, size: tuple[int, int], limit: int) -> None:
    pixels = size[0] * size[1]
    if pixels > limit:
        raise InputError(
            f"{name}: {size[0]}x{size[1]} is {pixels / 1e6:.0f} megapixels, above the limit of {limit / 1e6:.0f} for "
            f"one image: shrink it, crop it, or raise the limit with the environment variable {LIMIT}"
        )
    if pixels == 0:
        raise InputError(f"{name}: {size[0]}x{size[1]}, an image without pixels")

"""The colours of palette images, read from the head of a file without its pixels."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

from ..errors import InputError
from . import tiff

_SUFFIXES = (".png", ".tif", ".tiff")  # of masks that Foveal writes
_PNG = b"\x89PNG\r\n\x1a\n"
_INDEXED = 3  # colour type of PNG, and photometric interpretation of TIFF
_MAX_CHUNKS = 64  # before the palette
_COLOUR_MAP = 320  # tag of TIFF: all reds, all greens, all blues, of 16 bits
_ENTRIES = 256  # of a TIFF of 8 bits

Palette = tuple[tuple[int, int, int], ...]


def has_palette(path: Path, palette: Palette) -> bool:
    """Whether a PNG or TIFF has exactly this palette, as the masks have that Foveal writes for these colours.

    Files with other suffixes have none, and are not opened: there may be many photographs.

    A palette without a colour proves nothing, because photographs may be stored with a palette of greys: the answer is
    then no. So it is for files that cannot be read.
    """
    suffix = path.suffix.lower()
    if suffix not in _SUFFIXES or all(red == green == blue for red, green, blue in palette):
        return False
    try:
        with path.open("rb") as file:
            if suffix == ".png":
                return _png_palette(file) == b"".join(map(bytes, palette))
            return _tiff_palette(file, str(path)) == _tiff_colours(palette)
    except (OSError, ValueError, OverflowError, InputError, struct.error):
        return False


def _png_palette(file: BinaryIO) -> bytes:
    """The content of the chunk PLTE; empty if there is none before the pixels."""
    head = file.read(33)  # the signature and the chunk IHDR
    if head[:8] != _PNG or head[25:26] != bytes([_INDEXED]):
        return b""
    for _ in range(_MAX_CHUNKS):
        length, kind = struct.unpack(">I4s", file.read(8))
        if kind == b"PLTE":
            return file.read(min(length, 3 * _ENTRIES))
        if kind == b"IDAT":
            return b""
        file.seek(length + 4, 1)
    return b""


def _tiff_palette(file: BinaryIO, name: str) -> tuple[int, ...]:
    """The colour map of the first page; empty if it has none."""
    if file.read(2) not in (b"II", b"MM"):
        return ()
    first = tiff.first_page(file, name)
    return first.tags.get(_COLOUR_MAP, ()) if first is not None and first.first(262) == _INDEXED else ()


def _tiff_colours(palette: Palette) -> tuple[int, ...]:
    """The colour map of a TIFF of 8 bits with this palette; further entries are black."""
    unused = (0,) * (_ENTRIES - len(palette))
    return tuple(value for band in zip(*palette, strict=True) for value in (*(257 * each for each in band), *unused))

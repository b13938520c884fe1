"""The pixels of TIFF pages: all of them, or one tile or strip after the other.

Pillow decodes at most four bands and drops those that it does not know. Here its libtiff only unpacks the compressed
bytes of each plane, as if they were the grey values of a wider image; the bands are then taken from these bytes.
"""

from __future__ import annotations

import io
import struct
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import JpegImagePlugin

from ..errors import InputError
from . import tiff

_BLOCK_VALUES = 1 << 28  # of one tile or strip
_STRIP_BYTES = 4 << 20  # of the parts into which a strip without compression is cut
_MAX_STRIPS = 1 << 20


def read_page(content: bytes, page: tiff.Page, name: str) -> NDArray[Any]:
    """The values of a page, ``(H, W, C)`` in the type of the file, in the order in which it stores them.

    Args:
        content: of the whole file.
        page: a plain one, whose size was checked.
        name: of the file, for messages.

    Raises:
        InputError: damaged.
        OSError, ValueError: the same, from the decoder.
    """
    separate = page.first(284, 1) == 2
    check_places(page, name)
    offsets, counts = _places(page)
    part = len(offsets) // (page.bands if separate else 1)
    parts = [
        _read_plane(content, page, 1 if separate else page.bands, offsets[i : i + part], counts[i : i + part])
        for i in range(0, len(offsets), part)
    ]
    values = np.concatenate(parts, axis=2) if separate else parts[0]
    if page.first(262, 1) == 0 and page.bands == 1 and values.dtype.kind == "u":  # 0 is white
        values = np.iinfo(values.dtype).max - values
    return values


def _places(page: tiff.Page) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Where the tiles or strips of a page begin in the file, and their numbers of bytes."""
    tags = page.tags
    return tags.get(324) or tags.get(273, ()), tags.get(325) or tags.get(279, ())


def check_places(page: tiff.Page, name: str) -> None:
    """Check that a page has a place for each of its tiles or strips: decoders read zeros, or other bytes of the file.

    Raises:
        InputError: places are missing, or blocks were never written (GDAL's SPARSE_OK).
    """
    wide, high = page.size
    if not wide or not high:
        raise InputError(f"{name}: damaged (an image without pixels)")
    width, height = page.first(322) or wide, page.first(323) or min(page.first(278, high) or high, high)
    offsets, counts = _places(page)
    planes = page.bands if page.first(284, 1) == 2 else 1
    expected = -(-wide // width) * -(-high // height) * planes
    packed = page.first(259, 1) != 1  # Pillow needs no lengths where nothing is compressed
    if len(offsets) < expected or len(offsets) % planes or (packed and len(counts) != len(offsets)):
        raise InputError(f"{name}: damaged (the places of its pixels are missing)")
    if not all(offsets) or (packed and not all(counts)):
        raise InputError(f"{name}: some of its blocks were never written (a sparse file): write all of them")


class Blocks:
    """The tiles or strips of a page, which are decoded one by one.

    Args:
        page: a plain one, or of JPEG.
        name: of the file, for messages.
        tables: content of the tag :data:`~.tiff.JPEG_TABLES`; empty: each block has its own.
        nodata: value of the pixels of blocks that were never written; ``None``: 0.

    Attributes:
        height, width: of a block, in pixels; those at the bottom and right reach to the end of the page only.
    """

    def __init__(self, page: tiff.Page, name: str, tables: bytes = b"", nodata: float | None = None) -> None:
        self.page, self.name, self._tables, self._nodata = page, name, tables, nodata
        wide, high = page.size
        if not wide or not high:
            raise InputError(f"{name}: damaged (an image without pixels)")
        self.width, self.height = page.first(322) or wide, page.first(323) or min(page.first(278, high) or high, high)
        self._across, self._down = -(-wide // self.width), -(-high // self.height)
        self._planes = page.bands if page.first(284, 1) == 2 else 1
        self._offsets, self._counts = _places(page)
        expected = self._across * self._down * self._planes
        if not expected or {len(self._offsets), len(self._counts)} != {expected}:
            raise InputError(f"{name}: damaged (the places of its pixels are missing)")
        if self._down == 1 and 324 not in page.tags and page.first(259, 1) == 1 and page.is_plain:
            self._cut_strip()
        if self.height * self.width * page.bands > _BLOCK_VALUES:
            raise InputError(
                f"{name}: stored in blocks of {self.width}x{self.height} pixels, too large to read in windows: convert "
                "it to tiles"
            )

    def _cut_strip(self) -> None:
        """Cut the one strip of uncompressed pixels, as Pillow stores images, into strips that fit into caches.

        Raises:
            InputError: the strip is too short for its image.
        """
        wide, high = self.page.size
        row = wide * self.page.bands // self._planes * np.dtype(self.page.dtype).itemsize
        if any(0 < count < high * row for count in self._counts):
            raise InputError(f"{self.name}: damaged or truncated (pixels are missing)")
        if not all(self._counts) or not _STRIP_BYTES < high * row <= _STRIP_BYTES * _MAX_STRIPS:
            return
        self.height = max(1, _STRIP_BYTES // row)
        tops = range(0, high, self.height)
        self._down = len(tops)
        self._offsets = tuple(offset + top * row for offset in self._offsets for top in tops)
        self._counts = tuple(min(self.height, high - top) * row for _ in range(self._planes) for top in tops)

    def read(self, file: BinaryIO, row: int, column: int) -> NDArray[Any]:
        """The values of a block, ``(h, w, bands)``."""
        wide, high = self.page.size
        height = min(self.height, high - row * self.height)
        width = min(self.width, wide - column * self.width)
        bands = self.page.bands // self._planes
        planes = []
        for plane in range(self._planes):
            index = (plane * self._down + row) * self._across + column
            planes.append(self._plane(file, index, bands, height)[:height, :width])
        values = np.concatenate(planes, axis=2) if len(planes) > 1 else planes[0]
        if self.page.first(262, 1) == 0 and self.page.bands == 1 and values.dtype.kind == "u":  # 0 is white
            values = np.iinfo(values.dtype).max - values
        return np.ascontiguousarray(values)

    def _plane(self, file: BinaryIO, index: int, bands: int, height: int) -> NDArray[Any]:
        """One plane of a block, as a file of its own for the decoder."""
        offset, count = self._offsets[index], self._counts[index]
        if not count or not offset:  # a block that was never written
            dtype, nodata = np.dtype(self.page.dtype).newbyteorder("="), self._nodata
            limits = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
            fits = nodata is not None and (
                limits.min <= nodata <= limits.max or (dtype.kind == "f" and nodata != nodata)
            )
            return np.full((self.height, self.width, bands), nodata if fits else 0, dtype)
        file.seek(offset)
        packed = file.read(min(count, _BLOCK_VALUES * 16))
        if len(packed) < count:
            raise InputError(f"{self.name}: damaged or truncated (pixels are missing)")
        tiled = 324 in self.page.tags
        rows = self.height if tiled else height
        if self.page.is_jpeg:
            return _decode_jpeg(packed, self._tables, self.page, (self.width, rows), self.name)
        tags = {key: value for key, value in self.page.tags.items() if key not in (273, 279, 322, 323, 324, 325)}
        tags |= {256: (self.width,), 257: (rows,), 278: (rows,)}
        if tiled:
            tags |= {322: (self.width,), 323: (rows,), 324: (8,)}
        return _read_plane(bytes(8) + packed, tiff.Page(tags, self.page.order), bands, (8,), (count,))


def _decode_jpeg(packed: bytes, tables: bytes, page: tiff.Page, size: tuple[int, int], name: str) -> NDArray[np.uint8]:
    """A block of JPEG (Adobe Photoshop TIFF Technical Note 2): its tables are in a tag, its colours in another."""
    # Adobe's marker says whether three channels are luma and chroma; without it decoders guess.
    adobe = b"\xff\xee\x00\x0eAdobe\x00\x64" + bytes(4) + bytes([page.first(262) == 6])
    stream = b"\xff\xd8" + adobe + tables[2:-2] + packed[2:]
    with JpegImagePlugin.JpegImageFile(io.BytesIO(stream), "") as image:
        if image.size != size or len(image.getbands()) != page.bands:
            raise InputError(f"{name}: damaged (a block of JPEG has another size or other bands)")
        return np.asarray(image).reshape(size[1], size[0], page.bands)


def _read_plane(
    content: bytes, page: tiff.Page, bands: int, offsets: tuple[int, ...], counts: tuple[int, ...]
) -> NDArray[Any]:
    """One plane, ``(H, W, bands)``: the bytes are unpacked, then the predictor is undone in each tile or strip."""
    (width, height), kind = page.size, np.dtype(page.dtype)
    tile_width, tile_height = page.first(322) or width, page.first(323) or height
    across, down = -(-width // tile_width), -(-height // tile_height)
    tiled = 324 in page.tags
    if tiled and across * down != len(offsets):
        raise InputError("wrong number of tiles")
    row = tile_width * bands * kind.itemsize
    entries = {256: across * row, 257: down * tile_height, 258: 8, 259: page.first(259, 1), 262: 1, 277: 1}
    if tiled:
        entries |= {322: row, 323: tile_height, 324: offsets, 325: counts}
    else:
        entries |= {273: offsets, 278: min(page.first(278, height), height), 279: counts}
    with tiff.TiffReader(io.BytesIO(_with_directory(content, entries)), "") as image:
        image.load()
        packed = np.asarray(image)
    values = _undo_predictor(packed.reshape(-1, across, row), page.first(317, 1), kind, bands)
    return np.ascontiguousarray(values.reshape(down * tile_height, across * tile_width, bands)[:height, :width])


def _with_directory(content: bytes, entries: dict[int, int | tuple[int, ...]]) -> bytes:
    """The file with another directory, at its end: a classic TIFF of little-endian 32-bit tags."""
    start = len(content) + len(content) % 2
    after = start + 2 + 12 * len(entries) + 4
    rows, arrays = b"", b""
    for tag, value in sorted(entries.items()):
        values = value if isinstance(value, tuple) else (value,)
        data = struct.pack(f"<{len(values)}I", *values)
        if len(values) > 1:
            data, arrays = struct.pack("<I", after + len(arrays)), arrays + data
        rows += struct.pack("<HHI", tag, 4, len(values)) + data
    directory = struct.pack("<H", len(entries)) + rows + bytes(4) + arrays
    return b"".join((b"II*\0", struct.pack("<I", start), content[8:], bytes(start - len(content)), directory))


def _undo_predictor(packed: NDArray[np.uint8], predictor: int, kind: np.dtype, bands: int) -> NDArray[Any]:
    """Values ``(rows, tiles, pixels, bands)`` in native byte order from bytes ``(rows, tiles, bytes)``.

    Predictor 2 stores differences of neighbouring pixels; 3 those of the bytes of floating-point values, most
    significant bytes first (Adobe Photoshop TIFF Technical Note 3).
    """
    rows, tiles, _ = packed.shape
    if predictor == 3:
        summed = np.cumsum(packed.reshape(rows, tiles, -1, bands), axis=2, dtype=np.uint8)
        by_byte = summed.reshape(rows, tiles, kind.itemsize, -1)
        values = np.ascontiguousarray(by_byte.swapaxes(2, 3)).view(kind.newbyteorder(">"))
    elif predictor == 2:
        whole = np.dtype(f"{kind.byteorder}u{kind.itemsize}".replace("|", ""))
        values = packed.view(whole).reshape(rows, tiles, -1, bands)
        values = np.cumsum(values, axis=2, dtype=whole.newbyteorder("=")).view(kind.newbyteorder("="))
    elif predictor == 1:
        values = packed.view(kind)
    else:
        raise InputError(f"unknown predictor {predictor}")
    return values.astype(kind.newbyteorder("="), copy=False).reshape(rows, tiles, -1, bands)

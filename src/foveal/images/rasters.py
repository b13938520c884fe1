"""Images that are read window by window, because they may be larger than memory.

TIFF and BigTIFF files in tiles or strips, NPY files and arrays are read where a window needs them. Other formats
cannot be: they are decoded as a whole, up to the limit of pixels for one image.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from . import decoding, tiff
from .bands import RGB, Bands, read_bands
from .formats import detect_format
from .npy import NPY, npy_layout
from .reading import read_image
from .sources import ImageLike, name_of, plain_source, why_missing

_CACHE_BYTES = 192 << 20  # of decoded blocks: a row of strips of a wide image, so that each is decoded once


class Raster(Protocol):
    """An image of which windows are read.

    Attributes:
        name: in messages.
        shape: (H, W, C).
        dtype: of the values that :meth:`read` returns.
        nodata: value of all bands of pixels without data; ``None``: every pixel has data.
    """

    name: str
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    nodata: float | None

    def read(self, rows: slice, columns: slice) -> NDArray[Any]:
        """The values of a window inside the image, ``(h, w, C)``."""
        ...


class ArrayRaster:
    """An image in memory."""

    def __init__(self, values: NDArray[Any], name: str = "array") -> None:
        self.values = values if values.ndim == 3 else values[..., None]
        self.name = name
        self.shape: tuple[int, int, int] = self.values.shape  # pyright: ignore[reportAttributeAccessIssue]
        self.dtype = values.dtype
        self.nodata: float | None = None

    def read(self, rows: slice, columns: slice) -> NDArray[Any]:
        return self.values[rows, columns]


class NpyRaster:
    """An image in an NPY file, whose rows are read by file operations and not mapped into memory."""

    def __init__(self, file: FileIO, name: str) -> None:
        self.name, self._file = name, file
        self.nodata: float | None = None
        shape, self.dtype, self._start = npy_layout(file, name)
        if len(shape) not in (2, 3) or 0 in shape:
            raise InputError(f"{name}: an array of shape {shape}: expected (H, W, C) or (H, W)")
        self.shape = (shape[0], shape[1], shape[2] if len(shape) == 3 else 1)

    def read(self, rows: slice, columns: slice) -> NDArray[Any]:
        _, width, channels = self.shape
        values = np.empty((rows.stop - rows.start, columns.stop - columns.start, channels), self.dtype)
        for index, row in enumerate(values):
            place = ((rows.start + index) * width + columns.start) * channels
            self._file.seek(self._start + place * self.dtype.itemsize)
            if self._file.readinto(row.data.cast("B")) != row.nbytes:
                raise InputError(f"{self.name}: truncated")
        return values


class TiffRaster:
    """The first image of a TIFF file; blocks (tiles or strips) are decoded when a window needs them.

    Attributes:
        page: its tags.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.name, self._file = name, file
        with decoding.one_line_errors(self.name):
            found = tiff.pages(self._file, self.name, strict=False)
        if not found:
            raise InputError(f"{self.name}: a TIFF file without an image")
        self.page = page = found[0]
        (width, height), self.dtype = page.size, np.dtype(page.dtype or "u1").newbyteorder("=")
        self.shape = (height, width, page.bands)
        tables = self.tags((tiff.JPEG_TABLES,)).get(tiff.JPEG_TABLES)
        self._blocks = tiff.Blocks(page, self.name, b"" if tables is None else tables.data)
        self._cache: OrderedDict[tuple[int, int], NDArray[Any]] = OrderedDict()
        self._cached = 0
        self.nodata = self._read_nodata()

    @property
    def why_whole(self) -> str:
        """Why the file cannot be read in windows; empty if it can."""
        if not (self.page.is_plain or self.page.is_jpeg):
            return f"its compression or colours ({self.page.describe()}) are only decoded for the whole image"
        if self.page.first(274, 1) != 1:
            return "it is stored rotated or mirrored"
        return ""

    def _read_nodata(self) -> float | None:
        """The value that GDAL writes as text."""
        tag = self.tags((tiff.NODATA,)).get(tiff.NODATA)
        try:
            return None if tag is None else float(tag.data.decode("ascii").strip("\0 "))
        except ValueError:
            return None

    def tags(self, numbers: Iterable[int]) -> dict[int, tiff.RawTag]:
        """Those of the tags of these numbers that the file has, as they are stored."""
        with decoding.one_line_errors(self.name):
            return tiff.raw_tags(self._file, self.name, numbers)

    def read(self, rows: slice, columns: slice) -> NDArray[Any]:
        out = np.empty((rows.stop - rows.start, columns.stop - columns.start, self.shape[2]), self.dtype)
        high, wide = self._blocks.height, self._blocks.width
        for row in range(rows.start // high, -(-rows.stop // high)):
            for column in range(columns.start // wide, -(-columns.stop // wide)):
                block = self._block(row, column)
                top, left = row * high, column * wide
                first, last = max(rows.start, top), min(rows.stop, top + len(block))
                begin, end = max(columns.start, left), min(columns.stop, left + block.shape[1])
                part = block[first - top : last - top, begin - left : end - left]
                out[first - rows.start : last - rows.start, begin - columns.start : end - columns.start] = part
        return out

    def _block(self, row: int, column: int) -> NDArray[Any]:
        key = row, column
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        with decoding.one_line_errors(self.name):
            block = self._blocks.read(self._file, row, column)
        self._cache[key] = block
        self._cached += block.nbytes
        while self._cached > _CACHE_BYTES and len(self._cache) > 1:
            self._cached -= self._cache.popitem(last=False)[1].nbytes
        return block


@contextmanager
def open_raster(source: ImageLike, bands: Bands) -> Iterator[Raster]:
    """Open an image for reading windows; its file is closed at the end of the context.

    Args:
        source: path, array, or anything else that :func:`~.reading.read_image` reads.
        bands: what a model takes: images that cannot be read in windows are converted to it as a whole.

    Raises:
        InputError: missing, damaged, or not an image; and an image that must be decoded as a whole and is too large.
    """
    name, plain = name_of(source, "image"), plain_source(source)
    if isinstance(plain, str | Path):
        path = Path(plain)
        if not path.exists():
            raise InputError(f"{name}: {why_missing(os.fsdecode(path))}")
        with path.open("rb", buffering=0) as file:
            if path.suffix.lower() == NPY:
                yield NpyRaster(file, name)
                return
            is_tiff = detect_format(file, name) == "TIFF"
            if is_tiff and not (raster := TiffRaster(file, name)).why_whole:
                yield raster
                return
    yield ArrayRaster(plain if isinstance(plain, np.ndarray) else bands.read(source), name)


def valid_pixels(window: NDArray[Any], nodata: float | None) -> NDArray[np.bool_]:
    """Which pixels of a window ``(h, w, C)`` have data: a band that differs from the value of pixels without data."""
    if nodata is None:
        return np.ones(window.shape[:2], bool)
    missing = np.isnan(window) if np.isnan(nodata) else window == nodata
    return np.asarray(~missing.all(axis=2))


def as_bands(window: NDArray[Any], raster: Raster, bands: Bands) -> NDArray[Any]:
    """A window of an image as a model takes it: RGB of 8 bits by the rules of ``read_image``, else unchanged.

    Raises:
        InputError: the image has other bands.
    """
    if bands != RGB:
        values = read_bands(window)
        if bands.count not in (0, values.shape[2]) or bands.dtype not in ("", str(values.dtype)):
            raise InputError(f"{raster.name}: {Bands(values.shape[2], str(values.dtype))}, but the model takes {bands}")
        return values
    lost = isinstance(raster, TiffRaster) and raster.page.has_lost_bands
    if window.dtype == np.uint16 and not lost and window.shape[2] in (1, 3):
        rounded = window.astype(np.uint32) * 255 + 32767  # as read_image: greys are rounded, colours cut off
        window = (rounded // 65535 if window.shape[2] == 1 else window >> 8).astype(np.uint8)
    if window.dtype != np.uint8 or lost or window.shape[2] not in (1, 3, 4):
        raise InputError(
            f"{raster.name}: {Bands(window.shape[2], str(window.dtype))}, but the model takes {bands}: take a model "
            "for these bands (docs/bands.md), or save the bands to use as an RGB image"
        )
    return read_image(window)

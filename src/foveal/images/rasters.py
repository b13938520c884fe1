"""Images that are read window by window, because they may be larger than memory.

TIFF files in tiles or strips, slides, Zarr folders, NPY files and arrays are read where a window needs them, PNG and
JPEG files row by row. Other files cannot be: they are decoded as a whole, up to the limit of pixels for one image.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import InputError
from . import decoding, jpeg_rows, png_rows, slides, tiff, tiff_pixels, zarr_reading
from .bands import RGB, Bands, read_bands
from .block_raster import BlockRaster
from .formats import SizeError, detect_format, stored_size
from .npy import NPY, npy_layout
from .reading import read_image
from .row_raster import RowRaster
from .sources import ImageLike, name_of, plain_source, why_missing
from .tiff_writing import GEO_TAGS, TIFF_SUFFIXES, scaled_georeference

_AT_ONCE = 16_000_000  # pixels of PNG and JPEG files that are decoded at once: that needs less memory than a piece


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
        if values.ndim not in (2, 3) or not values.size:
            raise InputError(f"{name}: an array of shape {values.shape}: expected (H, W, C) or (H, W)")
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
        shape, self._stored, self._start = npy_layout(file, name)
        self.dtype = self._stored.newbyteorder("=")
        if len(shape) not in (2, 3) or 0 in shape:
            raise InputError(f"{name}: an array of shape {shape}: expected (H, W, C) or (H, W)")
        self.shape = (shape[0], shape[1], shape[2] if len(shape) == 3 else 1)

    def read(self, rows: slice, columns: slice) -> NDArray[Any]:
        _, width, channels = self.shape
        values = np.empty((rows.stop - rows.start, columns.stop - columns.start, channels), self._stored)
        for index, row in enumerate(values):
            place = ((rows.start + index) * width + columns.start) * channels
            self._file.seek(self._start + place * self.dtype.itemsize)
            if self._file.readinto(row.view(np.uint8).data.cast("B")) != row.nbytes:
                raise InputError(f"{self.name}: truncated")
        return values.astype(self.dtype, copy=False)


class TiffRaster(BlockRaster):
    """The first image of a TIFF file, or a smaller version of it, in its tiles or strips.

    Attributes:
        page: its tags.
        path: of the file.

    Raises:
        InputError: damaged, no image, or no such level.
    """

    def __init__(self, file: BinaryIO, name: str, level: int = 0) -> None:
        self.name, self._file, self.path = name, file, Path(file.name)
        with decoding.one_line_errors(name):
            found = tiff.levels(file, name) if level else tiff.pages(file, name, strict=False)
        if not found:
            raise InputError(f"{name}: a TIFF file without an image")
        if level and not 0 <= level < len(found):
            raise InputError(f"{name}: level {level}, but its levels are 0 to {len(found) - 1}")
        self._first, self.page, self._is_stack = found[0], found[level], not level and tiff.is_stack(found)
        page = self.page
        (width, height), dtype = page.size, np.dtype(page.dtype or "u1").newbyteorder("=")
        tables = self._tags((tiff.JPEG_TABLES,), page).get(tiff.JPEG_TABLES)
        nodata = self._read_nodata()
        self._blocks = tiff_pixels.Blocks(page, name, b"" if tables is None else tables.data, nodata)
        block = self._blocks.height, self._blocks.width
        super().__init__(name, (height, width, page.bands), dtype, block, nodata)

    @property
    def why_whole(self) -> str:
        """Why the file cannot be read in windows; empty if it can."""
        if not (self.page.is_plain or self.page.is_jpeg):
            return f"its compression or colours ({self.page.describe()}) are only decoded for the whole image"
        if self.page.first(262) in tiff.OTHER_COLOURS:
            return "its colours are neither grey nor RGB and are only converted for the whole image"
        if self.page.first(274, 1) != 1:
            return "it is stored rotated or mirrored"
        if self._is_stack:
            return "its bands are pages"
        return ""

    def _read_nodata(self) -> float | None:
        """The value that GDAL writes as text."""
        tag = self._tags((tiff.NODATA,), self._first).get(tiff.NODATA)
        try:
            return None if tag is None else float(tag.data.decode("ascii").strip("\0 "))
        except ValueError:
            return None

    @property
    def georeference(self) -> dict[int, tiff.RawTag]:
        """The tags that tie the pixels of this level to places on the earth; empty: there are none."""
        (width, height), (first_width, first_height) = self.page.size, self._first.size
        with decoding.one_line_errors(self.name):
            return scaled_georeference(self._tags(GEO_TAGS, self._first), width / first_width, height / first_height)

    def _tags(self, numbers: Iterable[int], page: tiff.Page) -> dict[int, tiff.RawTag]:
        with decoding.one_line_errors(self.name):
            return tiff.raw_tags(self._file, self.name, numbers, page.offset)

    def decode(self, row: int, column: int) -> NDArray[Any]:
        """The values of a tile or strip."""
        return self._blocks.read(self._file, row, column)


@contextmanager
def open_raster(source: ImageLike, bands: Bands, level: int = 0) -> Iterator[Raster]:
    """Open an image for reading windows; its file is closed at the end of the context.

    Args:
        source: path, array, or anything else that :func:`~.reading.read_image` reads.
        bands: what a model takes: images that cannot be read in windows are converted to it as a whole.
        level: of a file with smaller versions of an image (slides, TIFF, OME-Zarr); 0 is the largest.

    Raises:
        InputError: missing, damaged, or not an image; and an image that must be decoded as a whole and is too large.
        DependencyError: a library for the format is not installed.
    """
    name, plain = name_of(source, "image"), plain_source(source)
    if not isinstance(plain, str | Path):
        if level:
            raise InputError(f"{name}: level {level} of an image that is no file with levels")
        yield ArrayRaster(plain if isinstance(plain, np.ndarray) else bands.read(plain, name=name), name)
        return
    path = Path(plain)
    if not path.exists():
        raise InputError(f"{name}: {why_missing(os.fsdecode(path))}")
    if zarr_reading.is_zarr(path):
        yield zarr_reading.ZarrRaster(path, level, name)
    elif path.suffix.lower() in slides.SUFFIXES:
        with slides.open_slide(path, level, name) as slide:
            yield slide
    elif level:
        with path.open("rb") as file:
            yield _open_level(file, level, name)
    elif path.suffix.lower() == NPY:
        with path.open("rb", buffering=0) as file:
            yield NpyRaster(file, name)
    else:
        with path.open("rb") as file:
            raster, reason = _open_windows(file, bands, name)
            yield _read_whole(source, bands, name, reason) if raster is None else raster


def _open_windows(file: BinaryIO, bands: Bands, name: str) -> tuple[Raster | None, str]:
    """An image whose windows can be read; ``None``, and why, if it must be decoded as a whole."""
    kind = detect_format(file, name)
    if kind == "TIFF":
        raster = TiffRaster(file, name)
        return (None, raster.why_whole) if raster.why_whole else (raster, "")
    if kind not in ("PNG", "JPEG") or _pixels(file, kind, name) <= _AT_ONCE:
        return None, ""
    if kind == "PNG":
        header = png_rows.read_png_header(file, name)
        if header.why_whole:
            return None, header.why_whole
        return RowRaster(png_rows.PngRows(file, header, bands, name), name), ""
    if reason := jpeg_rows.why_whole(file, name):
        return None, reason
    if not jpeg_rows.is_installed():
        return None, f"reading JPEG row by row needs libvips: {jpeg_rows.INSTALL}"
    return RowRaster(jpeg_rows.JpegRows(file, bands, name), name), ""


def _open_level(file: BinaryIO, level: int, name: str) -> TiffRaster:
    if detect_format(file, name) != "TIFF":
        raise InputError(f"{name}: level {level} of an image that is no file with levels")
    raster = TiffRaster(file, name, level)
    if raster.why_whole:
        raise InputError(f"{name}: level {level} cannot be read: {raster.why_whole}")
    return raster


def _pixels(file: BinaryIO, kind: str, name: str) -> int:
    with decoding.one_line_errors(name):
        return math.prod(stored_size(file, kind))


def _read_whole(source: ImageLike, bands: Bands, name: str, reason: str) -> ArrayRaster:
    try:
        return ArrayRaster(bands.read(source), name)
    except SizeError as error:
        raise SizeError(f"{error}; it cannot be read in parts: {reason}" if reason else str(error)) from error


def georeference_of(path: Path) -> dict[int, tiff.RawTag]:
    """The tags that tie the pixels of an image to places on the earth.

    Empty if the file is no upright TIFF file, or has no such tags, or damaged ones.
    """
    name = str(path)
    if path.suffix.lower() not in TIFF_SUFFIXES:
        return {}
    try:
        with decoding.one_line_errors(name), path.open("rb") as file:
            if detect_format(file, name) != "TIFF":
                return {}
            page = tiff.pages(file, name, strict=False)[0]
            tags = {} if page.first(274, 1) != 1 else tiff.raw_tags(file, name, GEO_TAGS, page.offset)
            return scaled_georeference(tags, 1, 1)
    except InputError:
        return {}


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
    if window.shape[2] == 4 and isinstance(raster, TiffRaster) and raster.page.first(338) == 1:
        height, width = window.shape[:2]  # colours are multiplied by alpha in the file
        return read_image(
            Image.frombytes("RGBA", (width, height), np.ascontiguousarray(window).tobytes(), "raw", "RGBa")
        )
    return read_image(window)

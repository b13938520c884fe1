"""Write tiled, compressed BigTIFF files of any size, with overviews, in the order of a cloud-optimised GeoTIFF.

First the directories, of the image and of its overviews, then the tiles of the smallest overview, and last those of the
image. Since all sizes must be known first, compressed tiles wait in a temporary file for each level.
"""

from __future__ import annotations

import io
import shutil
import struct
import tempfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..files import atomic_write
from .pyramid import TILE, Level
from .tiff import NODATA, RawTag

TIFF_SUFFIXES = (".tif", ".tiff")
_LEVEL = 3  # of compression: of masks, 6 takes twice as long for files that are a few percent smaller
#: Tags that tie pixels to places on the earth.
PIXEL_SCALE, TIE_POINTS, TRANSFORMATION = 33550, 33922, 34264
GEO_KEYS, _RASTER_TYPE = 34735, 1025
GEO_TAGS = (PIXEL_SCALE, TIE_POINTS, TRANSFORMATION, GEO_KEYS, 34736, 34737)
_SHORT, _LONG, _LONG8 = 3, 4, 16


@dataclass(frozen=True)
class TiffImage:
    """Size and format of an image to write.

    Attributes:
        height: in pixels.
        width: in pixels.
        channels: 1 for grey or indices, 3 for RGB; of float32 any number.
        dtype: "uint8", "uint16" or "float32".
        palette: colours of up to 256 indices; empty for none.
        tags: further tags of the image, as they are stored.
        nodata: value of pixels without data; ``None``: there are none.
        overviews: whether to add the image at a half, a quarter, ... of its size, down to one tile.
    """

    height: int
    width: int
    channels: int
    dtype: str = "uint8"
    palette: tuple[tuple[int, int, int], ...] = ()
    tags: Mapping[int, RawTag] = field(default_factory=dict)
    nodata: int | None = None
    overviews: bool = True

    @property
    def has_differences(self) -> bool:
        """Whether rows are stored as differences of neighbours; those of indices and of float32 take more bits."""
        return not self.palette and self.dtype != "float32"


class _Tiles:
    """The compressed tiles of a level, in a temporary file, or in memory."""

    def __init__(self, folder: Path | None) -> None:
        self.sizes: list[int] = []
        if folder is None:
            self.file: BinaryIO = io.BytesIO()
        else:
            self.file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by _write

    def add(self, tile: NDArray[Any], *, differences: bool) -> None:
        """Compress and store a tile; ``differences``: of neighbours in a row (predictor 2)."""
        if differences:
            tile[:, 1:] -= tile[:, :-1].copy()
        packed = zlib.compress(tile.astype(tile.dtype.newbyteorder("<"), copy=False).tobytes(), _LEVEL)
        self.file.write(packed)
        self.sizes.append(len(packed))


def write_tiff(path: str | Path, image: TiffImage, bands: Iterable[NDArray[Any]]) -> None:
    """Write an image from its bands, top to bottom; if that fails, no partial file is left.

    Args:
        path: of the file.
        image: size and format.
        bands: ``(rows, width, channels)`` each.

    Raises:
        InputError: the file cannot be written.
    """
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        _write(file, temporary.parent, image, bands)


def tiff_bytes(image: TiffImage, bands: Iterable[NDArray[Any]]) -> bytes:
    """The content of the file that :func:`write_tiff` writes, for images that fit into memory."""
    content = io.BytesIO()
    _write(content, None, image, bands)
    return content.getvalue()


def _write(file: BinaryIO, folder: Path | None, image: TiffImage, bands: Iterable[NDArray[Any]]) -> None:
    """Write the content of a file; its tiles wait in temporary files in ``folder``, or in memory if it is ``None``."""
    stored: list[_Tiles] = []

    def store(number: int, row: int, column: int, tile: NDArray[Any]) -> None:
        stored[number].add(tile, differences=image.has_differences)

    first = Level((image.height, image.width), image.channels, image.dtype, store, smaller=image.overviews)
    levels = list(first.levels())
    try:
        stored.extend(_Tiles(folder) for _ in levels)
        first.add_all(bands)
        _assemble(file, image, [level.size for level in levels], stored)
    finally:
        for tiles in stored:
            tiles.file.close()


def _assemble(file: BinaryIO, image: TiffImage, sizes: list[tuple[int, int]], stored: list[_Tiles]) -> None:
    """Write the header, the directories, and the tiles from the smallest level to the largest."""
    tags = [_tags(image, size, tiles, first=tiles is stored[0]) for size, tiles in zip(sizes, stored, strict=True)]
    start = 16
    starts = []
    for each in tags:  # offsets of tiles have a fixed size, so that the place of everything is known
        starts.append(start)
        start += len(_directory(each, start, 0))
    offset = start
    for tiles, each in reversed(list(zip(stored, tags, strict=True))):
        counts = np.array(tiles.sizes, "<u8")
        offsets = (offset + np.cumsum(counts) - counts).astype("<u8")
        each[324] = RawTag(_LONG8, len(counts), offsets.tobytes())
        offset += int(counts.sum())
    file.write(struct.pack("<2sHHHQ", b"II", 43, 8, 0, 16))
    for index, each in enumerate(tags):
        file.write(_directory(each, starts[index], starts[index + 1] if index + 1 < len(tags) else 0))
    for tiles in reversed(stored):
        tiles.file.seek(0)
        shutil.copyfileobj(tiles.file, file, 1 << 20)


def _tags(image: TiffImage, size: tuple[int, int], tiles: _Tiles, *, first: bool) -> dict[int, RawTag]:
    count, (height, width) = len(tiles.sizes), size
    photometric = 3 if image.palette else 2 if image.channels == 3 else 1
    bits = 8 * np.dtype(image.dtype).itemsize
    tags = {
        254: _longs(0 if first else 1),
        256: _longs(width),
        257: _longs(height),
        258: _shorts(*[bits] * image.channels),
        259: _shorts(8),  # deflate
        262: _shorts(photometric),
        277: _shorts(image.channels),
        284: _shorts(1),
        317: _shorts(2 if image.has_differences else 1),
        322: _longs(TILE),
        323: _longs(TILE),
        324: RawTag(_LONG8, count, bytes(8 * count)),
        325: RawTag(_LONG8, count, np.array(tiles.sizes, "<u8").tobytes()),
        339: _shorts(*[3 if image.dtype == "float32" else 1] * image.channels),
    }
    if image.channels not in (1, 3):
        tags[338] = _shorts(*[0] * (image.channels - 1))  # further channels without a meaning
    if image.palette:
        table = np.zeros((3, 256), "<u2")
        table[:, : len(image.palette)] = np.array(image.palette, np.uint16).T * 257
        tags[320] = RawTag(_SHORT, table.size, table.tobytes())
    if image.nodata is not None:
        text = f"{image.nodata}\0".encode()
        tags[NODATA] = RawTag(2, len(text), text)
    return tags | (dict(image.tags) if first else {})


def _shorts(*values: int) -> RawTag:
    return RawTag(_SHORT, len(values), struct.pack(f"<{len(values)}H", *values))


def _longs(*values: int) -> RawTag:
    return RawTag(_LONG, len(values), struct.pack(f"<{len(values)}I", *values))


def _directory(tags: Mapping[int, RawTag], start: int, following: int) -> bytes:
    """A directory at position ``start``, with the values that do not fit into it behind it."""
    rows, data = b"", b""
    behind = start + 8 + 20 * len(tags) + 8
    for number, tag in sorted(tags.items()):
        value = tag.data
        if len(value) > 8:
            place = struct.pack("<Q", behind + len(data))
            data += value + bytes(-len(value) % 8)
        else:
            place = value.ljust(8, b"\0")
        rows += struct.pack("<HHQ", number, tag.kind, tag.count) + place
    return struct.pack("<Q", len(tags)) + rows + struct.pack("<Q", following) + data


def scaled_georeference(tags: Mapping[int, RawTag], across: float, down: float) -> dict[int, RawTag]:
    """The tags of :data:`GEO_TAGS` for an image that covers the same ground with other numbers of pixels.

    Args:
        tags: those of the image.
        across: its new width over its width.
        down: its new height over its height.
    """
    scaled = dict(tags)
    half = 0.5 if _counts_from_centres(tags) else 0.0  # of a pixel: where column and row 0 are
    if PIXEL_SCALE in tags:
        values = np.frombuffer(tags[PIXEL_SCALE].data, "<f8")
        changed = values * np.resize([1 / across, 1 / down, 1], len(values))
        scaled[PIXEL_SCALE] = replace(tags[PIXEL_SCALE], data=changed.astype("<f8").tobytes())
    if TIE_POINTS in tags:
        points = np.frombuffer(tags[TIE_POINTS].data, "<f8").reshape(-1, 6).copy()
        points[:, :2] = (points[:, :2] + half) * [across, down] - half
        scaled[TIE_POINTS] = replace(tags[TIE_POINTS], data=points.astype("<f8").tobytes())
    if TRANSFORMATION in tags:
        matrix = np.frombuffer(tags[TRANSFORMATION].data, "<f8").reshape(4, 4) / [across, down, 1, 1]
        matrix[:, 3] += matrix[:, :2] @ [half - half * across, half - half * down]
        scaled[TRANSFORMATION] = replace(tags[TRANSFORMATION], data=matrix.astype("<f8").tobytes())
    return scaled


def _counts_from_centres(tags: Mapping[int, RawTag]) -> bool:
    """Whether whole columns and rows are the centres of pixels (RasterPixelIsPoint), not their corners."""
    if GEO_KEYS not in tags:
        return False
    keys = np.frombuffer(tags[GEO_KEYS].data, "<u2")
    return any(key == _RASTER_TYPE and value == 2 for key, _, _, value in keys[: len(keys) // 4 * 4].reshape(-1, 4))

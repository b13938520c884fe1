"""A picture of any size through a network that enlarges, band by band, from overlapping windows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..images.reading import Picture
from ..images.resampling import interpolated

WHOLE = 512 * 512  #: pixels of the small image up to which it goes through the network at once
TILE, OVERLAP = 384, 32  #: windows of larger ones
_GRID = 8  # windows begin on multiples of it, where the network's own strides fall as they would in the whole
_MARGIN = 4  # rows that interpolation looks beyond its own

Enlarge = Callable[[NDArray[np.float32]], NDArray[np.float32]]  # (h, w, 3) -> (scale * h, scale * w, 3), 0..1


def check_tiles(tile: int | None, overlap: int | None) -> int:
    """Return the overlap in pixels, by default :data:`OVERLAP`.

    Raises:
        InputError: windows that cannot be used.
    """
    overlap = min(OVERLAP, (tile or TILE) // 4) if overlap is None else overlap
    if tile is not None and (tile < 64 or tile % _GRID or not 0 <= overlap <= tile // 2):
        raise InputError(
            f"tile={tile}, overlap={overlap}: tile must be a multiple of {_GRID} from 64 up, overlap at most half of it"
        )
    return overlap


def enlarged_bands(
    enlarge: Enlarge,
    picture: Picture,
    scale: int,
    tile: int | None = None,
    overlap: int | None = None,
    discard_margin: int | None = None,
) -> Iterator[NDArray]:
    """Enlarge a picture.

    Args:
        enlarge: the network.
        picture: to enlarge. Its alpha is interpolated; a grey one stays grey.
        scale: of the network.
        tile: side of the windows; default: the whole of a small picture, :data:`TILE` for larger ones.
        overlap: pixels that windows share at least; they are blended there.
        blind: of these, pixels at each end of a window that count nothing, at most half: there the network sees the
            window's edge, not the image. Default: a quarter.

    Yields:
        Bands from top to bottom, ``(rows, scale * W, 3)``, with alpha 4 channels, of the picture's type.

    Raises:
        InputError: windows that cannot be used.
    """
    overlap = check_tiles(tile, overlap)
    height, width = picture.pixels.shape[:2]
    discard_margin = overlap // 4 if discard_margin is None else discard_margin
    whole = tile is None and height * width <= WHOLE
    top = 0
    side = max(height, width) if whole else tile or TILE
    for colours in _blended(enlarge, picture.pixels, scale, side, overlap, discard_margin):
        bottom = top + len(colours) // scale
        if picture.grey:
            colours[:] = colours.mean(2, keepdims=True)
        if picture.alpha is not None:
            alpha = _interpolated_rows(picture.alpha, top, bottom, scale)
            colours = np.concatenate([colours, alpha[..., None].astype(np.float32)], axis=2)
        yield _quantised(colours, picture.pixels.dtype)
        top = bottom


def _blended(
    enlarge: Enlarge, pixels: NDArray, scale: int, tile: int, overlap: int, discard_margin: int
) -> Iterator[NDArray[np.float32]]:
    """Bands of the enlarged picture on the 0..1 scale, its windows blended."""
    height, width = pixels.shape[:2]
    rows, columns = (_windows(length, tile, overlap) for length in (height, width))
    weights_y, weights_x = (_weights(spans, overlap, discard_margin, scale) for spans in (rows, columns))
    peak = np.iinfo(pixels.dtype).max
    pending = np.zeros((0, width * scale, 3), np.float32)  # what the next row of windows adds to
    for number, (top, bottom) in enumerate(rows):
        band = np.zeros(((bottom - top) * scale, width * scale, 3), np.float32)
        for (left, right), weight in zip(columns, weights_x, strict=True):
            window = pixels[top:bottom, left:right].astype(np.float32) / np.float32(peak)
            band[:, left * scale : right * scale] += enlarge(window) * weight[:, None]
        band *= weights_y[number][:, None, None]
        band[: len(pending)] += pending
        done = (rows[number + 1][0] - top) * scale if number + 1 < len(rows) else len(band)
        yield band[:done]
        pending = band[done:].copy()


def _windows(length: int, tile: int, overlap: int) -> list[tuple[int, int]]:
    """Windows along one side: (first, last + 1). One that begins earlier, to sit on the grid, still ends where due."""
    return [(start // _GRID * _GRID, min(start + tile, length)) for start in tile_starts(length, tile, overlap)]


def _weights(spans: list[tuple[int, int]], overlap: int, discard_margin: int, scale: int) -> list[NDArray[np.float32]]:
    """Weights of each window along one side, which sum to 1: raised cosines between its inner ends."""
    total = np.zeros(spans[-1][1] * scale, np.float32)
    ramps = []
    for first, last in spans:
        begin, end = first + discard_margin * (first > 0), last - discard_margin * (last < spans[-1][1])
        ramp = np.zeros((last - first) * scale, np.float32)
        inner = raised_cosine((end - begin) * scale, (overlap - 2 * discard_margin) * scale)
        ramp[(begin - first) * scale : (end - first) * scale] = inner
        total[first * scale : last * scale] += ramp
        ramps.append(ramp)
    return [ramp / total[first * scale : last * scale] for (first, last), ramp in zip(spans, ramps, strict=True)]


def _interpolated_rows(alpha: NDArray, top: int, bottom: int, scale: int) -> NDArray[np.float64]:
    """Rows ``scale * top`` to ``scale * bottom`` of the bicubic interpolation of a whole plane, on the 0..1 scale."""
    first, last = max(0, top - _MARGIN), min(len(alpha), bottom + _MARGIN)
    rows = interpolated(alpha[first:last, :, None] / np.iinfo(alpha.dtype).max, scale)[..., 0]
    return rows[(top - first) * scale : (bottom - first) * scale]


def _quantised(colours: NDArray, dtype: np.dtype) -> NDArray:
    peak = np.iinfo(dtype).max
    np.multiply(colours, peak, out=colours)
    np.rint(colours, out=colours)
    return np.clip(colours, 0, peak, out=colours).astype(dtype)


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """Start of each of the fewest evenly spread windows of ``tile`` that cover ``length`` with at least ``overlap``."""
    if length <= tile:
        return [0]
    count = math.ceil((length - overlap) / (tile - overlap))
    return [round(i * (length - tile) / (count - 1)) for i in range(count)]


def raised_cosine(length: int, ramp: int) -> NDArray[np.float32]:
    """Weights of one window, ``(length,)``: a raised-cosine rise and fall over ``ramp`` positions, never 0."""
    position = np.minimum(np.arange(length), np.arange(length)[::-1]) + 0.5
    return (0.5 - 0.5 * np.cos(np.pi * np.minimum(position / max(ramp, 1), 1.0))).astype(np.float32)

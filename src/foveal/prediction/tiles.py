"""Images of any size in overlapping tiles: blended logits when segmenting, bands of the larger image when upscaling."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError, InputError
from ..images.reading import Picture
from ..images.resampling import interpolated
from ..progress import Report
from .runner import Runner, check_finite

MIN_SIZE = 32  #: smallest side that networks accept; smaller images are padded
WHOLE = 512 * 1024  #: pixels of the largest image that is upscaled in one piece by default
_PART = (
    256 * 1024
)  # pixels of the largest default tile of a larger image: the first needs memory that the system clears
TILE, OVERLAP = 512, 32  #: side of square tiles where one is needed, and default overlap
_LEAST = 64  # smallest side of the tiles of an image that needs several
_GRID = 8  # tiles for upscaling begin on multiples of it, so that the network's strides are aligned as in the whole
_BAND = 1 << 21  # pixels of a row of tiles, whose enlarged band is in memory, where tiles may be higher than TILE
_ROUNDED = 16  # rows that are rounded at a time
_MARGIN = 4  # rows on each side that the interpolation kernel needs

Enlarge = Callable[[NDArray[np.float32]], NDArray[np.float32]]  # (h, w, 3) -> (scale * h, scale * w, 3), 0..1


def check_segment_tiles(tile: int, overlap: int | None, stride: int) -> int:
    """Return the overlap of tiles for segmentation in pixels; default: a third of ``tile``.

    Args:
        tile: side of the tiles.
        overlap: pixels that neighbouring tiles share.
        stride: output stride of the model.

    Raises:
        InputError: a tile or an overlap that the model cannot use.
    """
    grid = max(stride, MIN_SIZE)
    rule = f"tile must be a multiple of {grid} from {2 * grid} up"
    if tile < 2 * grid or tile % grid:
        raise InputError(f"tile={tile}: {rule}")
    overlap = tile // 3 if overlap is None else overlap
    if not 0 <= overlap <= tile - grid:
        raise InputError(f"tile={tile}, overlap={overlap}: {rule}, and overlap 0 to {tile - grid}")
    return overlap


def check_upscale_tiles(tile: int | None, overlap: int | None) -> int:
    """Return the overlap of tiles for upscaling in pixels; default: :data:`OVERLAP`.

    Raises:
        InputError: a tile or an overlap that cannot be used.
    """
    shown = "" if overlap is None else f", overlap={overlap}"
    overlap = min(OVERLAP, (tile or TILE) // 4) if overlap is None else overlap
    if tile is None and not 0 <= overlap <= TILE:
        raise InputError(f"overlap={overlap}: without tile, give 0 to {TILE}")
    if tile is not None and (tile < _LEAST or tile % _GRID or not 0 <= overlap <= tile // 2):
        rule = f"tile must be a multiple of {_GRID} from {_LEAST} up"
        raise InputError(f"tile={tile}{shown}: {rule}{', and overlap 0 to half of it' if shown else ''}")
    return overlap


def tiled_logits(
    network: Callable[[NDArray[Any]], NDArray[np.float32]],
    pixels: NDArray[Any],
    tile: int | tuple[int, int],
    overlap: int,
    stride: int,
    report: Report | None = None,
) -> NDArray[np.float32]:
    """Logits of overlapping tiles, blended with raised-cosine weights.

    Args:
        network: ``(h, w, C)`` pixels of one tile -> logits ``(C, h', w')``, of at least ``ceil(h / stride)`` rows and
            ``ceil(w / stride)`` columns.
        pixels: the image, ``(H, W, C)``.
        tile: side of the tiles, or (height, width).
        overlap: pixels that neighbouring tiles share at least.
        stride: output stride of the network. Tiles begin on multiples of it.
        report: told the share of the tiles that are done.

    Returns:
        ``(C, ceil(H / stride), ceil(W / stride))``.
    """
    height, width = pixels.shape[:2]
    total: NDArray[np.float32] | None = None
    weight = np.zeros((-(-height // stride), -(-width // stride)), np.float32)
    ramp = max(1, overlap // stride)
    tile_height, tile_width = (tile, tile) if isinstance(tile, int) else tile
    tops, lefts = tile_starts(height, tile_height, overlap), tile_starts(width, tile_width, overlap)
    count = _counter(len(tops) * len(lefts), report)
    for top in tops:
        for left in lefts:
            y, x = top // stride * stride, left // stride * stride
            # A tile that begins a little earlier, to be on the stride, still ends at the same pixel.
            window = pixels[y : top + tile_height, x : left + tile_width]
            rows, columns = -(-window.shape[0] // stride), -(-window.shape[1] // stride)
            logits = network(window)[:, :rows, :columns]
            blend = raised_cosine(rows, ramp)[:, None] * raised_cosine(columns, ramp)
            if total is None:
                total = np.zeros((len(logits), *weight.shape), np.float32)
            place = slice(y // stride, y // stride + rows), slice(x // stride, x // stride + columns)
            total[:, *place] += logits * blend
            weight[place] += blend
            count()
    assert total is not None
    return total / weight


def upscale_window(runner: Runner, window: NDArray[np.float32], scale: int) -> NDArray[np.float32]:
    """Upscale one tile: ``(h, w, 3) -> (scale * h, scale * w, 3)``, 0..1. Small ones are padded and cut again.

    Raises:
        CheckpointError: the network has another scale.
        InputError: its output has values that are not finite.
    """
    height, width = window.shape[:2]
    margin = ((0, max(0, MIN_SIZE - height)), (0, max(0, MIN_SIZE - width)), (0, 0))
    padded = np.pad(window, margin, mode="edge") if height < MIN_SIZE or width < MIN_SIZE else window
    output = runner(np.ascontiguousarray(padded.transpose(2, 0, 1)[None]))[0]
    expected = (3, scale * padded.shape[0], scale * padded.shape[1])
    if output.shape != expected:
        raise CheckpointError(
            f"the network gives {output.shape} instead of {expected}, which its description (scale {scale}) promises: "
            "export the model again"
        )
    check_finite(output)
    return output[:, : height * scale, : width * scale].transpose(1, 2, 0)


def enlarged_bands(
    enlarge: Enlarge,
    picture: Picture,
    scale: int,
    tile: int | None = None,
    overlap: int | None = None,
    discard_margin: int | None = None,
    largest: tuple[int, int] | None = None,
    report: Report | None = None,
) -> Iterator[NDArray]:
    """Upscale an image band by band.

    Args:
        enlarge: the network, see :func:`upscale_window`.
        picture: the image. Its alpha channel is interpolated; a grey image stays grey.
        scale: of the network.
        tile: side of the tiles; default: a small image in one piece, else equal tiles of at most :data:`WHOLE` pixels,
            in as many rows and columns as compute the fewest pixels twice.
        overlap: pixels that neighbouring tiles share at least; they are blended there.
        discard_margin: pixels of the overlap at each end of a tile that get weight 0, at most half of it: their
            receptive field is cut off by the tile's edge. Default: a quarter.
        largest: (H, W) of the largest images that the network takes; default: any.
        report: told the share of the tiles that are done.

    Yields:
        Bands from top to bottom, ``(rows, scale * W, 3)``, with alpha 4 channels, of the image's type.

    Raises:
        InputError: a tile or an overlap that cannot be used.
    """
    height, width = picture.pixels.shape[:2]
    sides, overlap = _upscale_tiles(height, width, tile, overlap, largest)
    if discard_margin is None:  # tiles begin on the grid, so that a smaller overlap may be none at places
        discard_margin = overlap // 4 if overlap >= _GRID else 0
    top = 0
    for colours in _blend_tiles(enlarge, picture.pixels, scale, sides, overlap, discard_margin, report):
        bottom = top + len(colours) // scale
        if picture.grey:
            colours = np.broadcast_to(colours.mean(2, keepdims=True), colours.shape)
        pixels = quantise(colours, picture.pixels.dtype)
        if picture.alpha is not None:
            alpha = interpolate_rows(picture.alpha, top, bottom, scale)
            pixels = np.concatenate(
                [pixels, quantise(alpha[..., None].astype(np.float32), picture.pixels.dtype)], axis=2
            )
        yield pixels
        top = bottom


def _blend_tiles(
    enlarge: Enlarge,
    pixels: NDArray,
    scale: int,
    sides: tuple[int, int],
    overlap: int,
    discard_margin: int,
    report: Report | None,
) -> Iterator[NDArray[np.float32]]:
    """Bands of the upscaled image, 0..1, with its tiles blended."""
    height, width = pixels.shape[:2]
    rows, columns = (_spans(length, tile, overlap) for length, tile in zip((height, width), sides, strict=True))
    weights_y, weights_x = (_weights(spans, overlap, discard_margin, scale) for spans in (rows, columns))
    peak = np.iinfo(pixels.dtype).max
    count = _counter(len(rows) * len(columns), report)
    pending = np.zeros((0, width * scale, 3), np.float32)  # rows to which the next row of tiles adds
    for number, (top, bottom) in enumerate(rows):
        enlarged: Iterator[NDArray[np.float32]] = (
            count(enlarge(pixels[top:bottom, left:right].astype(np.float32) / np.float32(peak)))
            for left, right in columns
        )
        band = next(enlarged) if len(columns) == 1 else _join(enlarged, columns, weights_x, scale)
        for row in np.flatnonzero(weights_y[number] != 1):
            band[row] *= weights_y[number][row]
        band[: len(pending)] += pending
        done = (rows[number + 1][0] - top) * scale if number + 1 < len(rows) else len(band)
        yield band[:done]
        pending = band[done:].copy()


def _counter(total: int, report: Report | None) -> Callable[..., Any]:
    """A function that counts a tile each time, and returns what it is given."""
    done = 0

    def count(value: Any = None) -> Any:
        nonlocal done
        done += 1
        if report is not None:
            report(done / total, f"tile {done} of {total}")
        return value

    return count


def _join(
    tiles: Iterator[NDArray[np.float32]],
    columns: list[tuple[int, int]],
    weights: list[NDArray[np.float32]],
    scale: int,
) -> NDArray[np.float32]:
    """Tiles of one row, blended: ``(rows, columns[-1][1] * scale, 3)``, planes in memory as those of the tiles."""
    band = np.zeros((3, 0, 0), np.float32)
    end = 0  # columns that hold a tile already
    for tile, (left, right), weight in zip(tiles, columns, weights, strict=True):
        if not end:
            band = np.empty((3, len(tile), columns[-1][1] * scale), np.float32)
        begin, planes = left * scale, tile.transpose(2, 0, 1)
        shared = max(0, end - begin)
        band[..., begin:end] += planes[..., :shared] * weight[:shared]
        np.multiply(planes[..., shared:], weight[shared:], out=band[..., begin + shared : right * scale])
        end = right * scale
    return band.transpose(1, 2, 0)


def _upscale_tiles(
    height: int, width: int, tile: int | None, overlap: int | None, largest: tuple[int, int] | None
) -> tuple[tuple[int, int], int]:
    """Sides of the tiles and their overlap, see :func:`enlarged_bands`."""
    fits = largest is None or (height <= largest[0] and width <= largest[1])
    if largest is None or (fits and tile is None and height * width <= WHOLE):
        overlap = check_upscale_tiles(tile, overlap)
        return (_covering_sides(height, width, overlap) if tile is None else (tile, tile)), overlap
    # Tiles that are moved to the grid grow by less than the grid.
    usable = [(side - _GRID + 1) // _GRID * _GRID for side in largest]
    most = [min(TILE, side) for side in usable]
    limits = f"this file takes images up to {largest[0]}x{largest[1]} (H x W)"
    if min(most) < _LEAST:
        raise InputError(f"an image of {height}x{width}: {limits}, too small for tiles")
    if tile is not None and tile > min(usable):
        raise InputError(f"tile={tile}: {limits}: give {min(usable)} or less")
    overlap = check_upscale_tiles(tile or min(most), overlap)
    if tile is not None:
        return (tile, tile), overlap
    rows, columns = (
        len(tile_starts(length, side, overlap)) for length, side in zip((height, width), most, strict=True)
    )
    return (_covering_side(height, rows, overlap), _covering_side(width, columns, overlap)), overlap


def _covering_sides(height: int, width: int, overlap: int) -> tuple[int, int]:
    """Sides of the tiles, on the grid and of at most ``_PART`` pixels, that compute the fewest pixels twice.

    An image of at most :data:`WHOLE` pixels is one tile.
    """
    if height * width <= WHOLE:
        return height, width
    least = max(_LEAST, 2 * overlap)
    best, fewest = (max(TILE, least), max(TILE, least)), math.inf
    for columns in range(1, -(-width // least) + 1):
        across = _covering_side(width, columns, overlap)
        tallest = min(_PART // across, max(TILE, _BAND // width)) // _GRID * _GRID
        if (columns > 1 and across < least) or tallest < min(least, height):
            continue
        rows = len(tile_starts(height, tallest, overlap))
        pixels = (height + (rows - 1) * overlap) * (width + (columns - 1) * overlap)
        if pixels < fewest:
            best, fewest = (_covering_side(height, rows, overlap), across), pixels
    return best


def _covering_side(length: int, count: int, overlap: int) -> int:
    """Smallest side on the grid of ``count`` tiles that cover ``length``."""
    return math.ceil((length + (count - 1) * overlap) / count / _GRID) * _GRID


def _spans(length: int, tile: int, overlap: int) -> list[tuple[int, int]]:
    """(first, last + 1) of the tiles along one side, which begin on the grid.

    All have the same size, so that a runtime prepares for one: up to the grid more than ``tile``.
    """
    starts = [start // _GRID * _GRID for start in tile_starts(length, tile, overlap)]
    size = length - starts[-1]
    return [(start, start + size) for start in starts]


def _weights(spans: list[tuple[int, int]], overlap: int, discard_margin: int, scale: int) -> list[NDArray[np.float32]]:
    """Weights of each tile along one side: raised cosines between its inner ends. Over all tiles they sum to 1."""
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


def interpolate_rows(alpha: NDArray, top: int, bottom: int, scale: int) -> NDArray[np.float64]:
    """Rows ``scale * top`` to ``scale * bottom`` of the bicubic interpolation of the whole alpha channel, 0..1."""
    first, last = max(0, top - _MARGIN), min(len(alpha), bottom + _MARGIN)
    rows = interpolated(alpha[first:last, :, None] / np.iinfo(alpha.dtype).max, scale)[..., 0]
    return rows[(top - first) * scale : (bottom - first) * scale]


def quantise(colours: NDArray, dtype: np.dtype) -> NDArray:
    """Round ``(rows, columns, C)`` from 0..1 to whole numbers, a few rows at a time, which stay in the cache."""
    peak = np.iinfo(dtype).max
    out = np.empty(colours.shape, dtype)
    for top in range(0, len(colours), _ROUNDED):
        # Planes are adjacent in memory, which numpy's loops follow best.
        planes = colours[top : top + _ROUNDED].transpose(2, 0, 1) * colours.dtype.type(peak)
        np.rint(planes, out=planes)
        np.clip(planes, 0, peak, out=planes)
        out[top : top + _ROUNDED] = planes.astype(dtype).transpose(1, 2, 0)
    return out


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """Starts of the fewest evenly spread tiles that cover ``length`` and share at least ``overlap`` pixels."""
    if length <= tile:
        return [0]
    count = math.ceil((length - overlap) / (tile - overlap))
    return [round(i * (length - tile) / (count - 1)) for i in range(count)]


def raised_cosine(length: int, ramp: int) -> NDArray[np.float32]:
    """Weights of one tile, ``(length,)``: a raised-cosine rise and fall over ``ramp`` positions, never 0."""
    position = np.minimum(np.arange(length), np.arange(length)[::-1]) + 0.5
    return (0.5 - 0.5 * np.cos(np.pi * np.minimum(position / max(ramp, 1), 1.0))).astype(np.float32)

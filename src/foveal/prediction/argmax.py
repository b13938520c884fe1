"""Bilinear upsampling of logits, and its argmax, computed only where the class can change."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class _Axis:
    """One axis of bilinear upsampling: the intervals between coarse positions, and the pixels in each.

    Attributes:
        ends: lower and upper coarse position of each interval that holds pixels, ``(2, n)``; before the first and
            behind the last position both are the same.
        first: first pixel in each interval, ``(n,)``.
        count: number of pixels in each interval, ``(n,)``.
        weight: weight of the upper end for each pixel, ``(length,)``.
    """

    ends: NDArray[np.intp]
    first: NDArray[np.intp]
    count: NDArray[np.intp]
    weight: NDArray[np.float32]

    @classmethod
    def between(cls, coarse: int, length: int, scale: float) -> _Axis:
        """Intervals of ``length`` pixels on ``coarse`` positions (half-pixel centres).

        A pixel is at the coarse position ``(pixel + 0.5) * scale - 0.5``.
        """
        position = np.clip((np.arange(length) + 0.5) * scale - 0.5, -0.5, coarse - 0.5)
        below = np.floor(position).astype(np.intp)
        lower, first, count = np.unique(below, return_index=True, return_counts=True)
        ends = np.stack([lower, lower + 1]).clip(0, coarse - 1)
        return cls(ends, first, count, (position - below).astype(np.float32))


_ROWS_AT_ONCE = 4  # pixel rows of a band: few enough for the cache


def upsampled_rows(
    logits: NDArray[np.floating], size: tuple[int, int], scale: tuple[float, float]
) -> Iterator[tuple[slice, NDArray[np.floating]]]:
    """Upsample logits bilinearly, in bands of a few pixel rows.

    Args:
        logits: ``(C, h, w)``.
        size: (H, W) of the result.
        scale: (vertical, horizontal) coarse positions per pixel.

    Yields:
        Which rows, and their logits ``(C, rows, W)``, in memory that the next band overwrites.
    """
    ys, xs = (_Axis.between(*axis) for axis in zip(logits.shape[1:], size, scale, strict=True))
    left, right = xs.ends.repeat(xs.count, axis=1)
    memory = np.empty((len(logits), _ROWS_AT_ONCE, size[1]), logits.dtype)
    for (above, below), first, count in zip(ys.ends.T, ys.first, ys.count, strict=True):
        upper, lower = logits[:, above], logits[:, below]
        upper = upper[:, left] + xs.weight * (upper[:, right] - upper[:, left])
        lower = lower[:, left] + xs.weight * (lower[:, right] - lower[:, left])
        step = lower - upper
        for start in range(first, first + count, _ROWS_AT_ONCE):
            rows = slice(start, min(start + _ROWS_AT_ONCE, first + count))
            band = memory[:, : rows.stop - rows.start]
            np.multiply(ys.weight[rows, None], step[:, None], out=band)
            band += upper[:, None]
            yield rows, band


_PIXELS_AT_ONCE = 1 << 16  # few enough for the cache, many enough that numpy's overhead per call is small


def upsampled_argmax(
    logits: NDArray[np.floating], size: tuple[int, int], scale: tuple[float, float]
) -> NDArray[np.uint8]:
    """Argmax over the classes of bilinearly upsampled logits, computed only where it can change.

    An upsampled value is a convex combination of four corners. Where all four corners have the same best class, it is
    the best everywhere in the cell between them. In the other cells the class is decided pixel by pixel, among the few
    classes that can be the best there.

    Args:
        logits: ``(C, h, w)``.
        size: (H, W) of the result.
        scale: (vertical, horizontal) coarse positions per pixel.

    Returns:
        ``(H, W)`` uint8, int32 for more than 256 classes.
    """
    coarse = _argmax(logits)
    ys, xs = (_Axis.between(*axis) for axis in zip(logits.shape[1:], size, scale, strict=True))
    corners = (ys.ends[:, None, :, None] * coarse.shape[1] + xs.ends[:, None]).reshape(4, len(ys.first), len(xs.first))
    winners = coarse.take(corners)
    mask = winners[0].repeat(xs.count, axis=1).repeat(ys.count, axis=0)
    y, x = np.nonzero((winners[1:] != winners[0]).any(0))
    values = logits.reshape(len(logits), -1).take(corners[:, y, x], axis=1).swapaxes(0, 1)  # (4, C, n)
    contends = _contenders(values, winners[:, y, x])
    count, rivals = contends.sum(0), np.nonzero(contends.T)[1]
    begin = np.cumsum(count) - count
    order = np.argsort(count, kind="stable")  # cells with the same number of rivals together
    tallest, widest = np.arange(ys.count.max())[:, None], np.arange(xs.count.max())[:, None]
    step = max(1, _PIXELS_AT_ONCE // (len(tallest) * len(widest)))
    for start in range(0, len(order), step):
        cells = order[start : start + step]
        # All cells are treated as large as the largest: smaller ones compute their last pixels several times.
        rows = ys.first[y[cells]] + np.minimum(tallest, ys.count[y[cells]] - 1)  # (tallest, n)
        columns = xs.first[x[cells]] + np.minimum(widest, xs.count[x[cells]] - 1)  # (widest, n)
        most = np.arange(count[cells[-1]])[:, None]
        classes = rivals[begin[cells] + np.minimum(most, count[cells] - 1)]  # (most, n)
        mask.reshape(-1)[rows[:, None] * size[1] + columns] = _argmax_between(
            values[:, classes, cells], classes.astype(mask.dtype), ys.weight[rows], xs.weight[columns]
        )
    return mask


def _argmax(logits: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Argmax over the first dimension (the first of equals), faster than numpy along that dimension."""
    best = logits[0].copy()
    winner: NDArray[Any] = np.zeros(best.shape, np.uint8 if len(logits) <= 256 else np.int32)
    for index in range(1, len(logits)):
        np.copyto(winner, index, where=logits[index] > best)
        np.maximum(best, logits[index], out=best)
    return winner


def _contenders(values: NDArray[np.floating], winners: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Which classes can be the best somewhere in ``n`` cells, ``(C, n)``.

    A class cannot be the best in a cell where another class is at least as good at all four corners. Each class is
    compared with two of the classes that are best at a corner.

    Args:
        values: logits at the corners, ``(4, C, n)``.
        winners: best class at each corner, ``(4, n)``, not the same at all four.
    """
    cells = np.arange(values.shape[2])
    tried = np.stack([winners.min(0), winners.max(0)])
    contends = np.ones(values.shape[1:], bool)
    for winner in tried:
        contends &= (values > values[:, None, winner, cells]).any(0)
    contends[tried, cells] = True
    return contends


def _argmax_between(
    values: NDArray[np.floating], classes: NDArray[np.integer], wy: NDArray[np.floating], wx: NDArray[np.floating]
) -> NDArray[np.integer]:
    """Find the best class of each pixel in ``n`` cells.

    Args:
        values: logits at upper left, upper right, lower left and lower right, ``(4, m, n)``.
        classes: the ``m`` classes of these logits in each cell, ``(m, n)``.
        wy: weights of the lower corners, ``(h, n)``.
        wx: weights of the right corners, ``(w, n)``.

    Returns:
        Best class of each pixel, ``(h, w, n)``.
    """
    lead = (values[:, 1:] - values[:, :1])[:, :, None]  # logits minus those of the first class, (4, m - 1, 1, n)
    upper = lead[0] + wx * (lead[1] - lead[0])
    step = lead[2] + wx * (lead[3] - lead[2]) - upper  # difference of the lower edge, (m - 1, w, n)
    winner, best = classes[0], np.zeros((), wx.dtype)
    for rival, start, slope in zip(classes[1:], upper, step, strict=True):
        ahead = wy[:, None] * slope
        ahead += start
        winner = winner + (ahead > best) * (rival - winner)  # np.where takes 3 times as long; unsigned wraps back
        best = np.maximum(best, ahead)
    return winner

"""A simulated user: each click goes to the centre of the larger error.

Source: the clicker of RITM (Sofiiuk et al., "Reviving iterative training with mask guidance for interactive
segmentation", arXiv 2102.06583), which the Segment Anything papers use.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_BLOCK = 1024  # candidate pixels whose distance is computed at a time


class Click(NamedTuple):
    """A pixel, and whether it belongs inside the mask (1, positive) or outside (0, negative)."""

    x: int
    y: int
    label: int


def next_click(target: NDArray[np.bool_], predicted: NDArray[np.bool_], clicks: Sequence[Click] = ()) -> Click | None:
    """Place the next click for a predicted mask.

    There are two errors: pixels of the object that the prediction lacks, and excess pixels. The click goes to the pixel
    that is farthest from the edge of its error; the image's frame counts as an edge. Among equally distant pixels, it
    goes to the first by row, then by column. If both errors are equally deep, it goes to the excess. No pixel is
    clicked twice.

    Args:
        target: mask of the object, ``(H, W)``.
        predicted: predicted mask; empty before the first click.
        clicks: the earlier clicks.

    Returns:
        The click, ``None`` if no error is left to click on.
    """
    missing, excess = (_deepest(error, clicks) for error in (target & ~predicted, predicted & ~target))
    deeper = missing if missing.depth > excess.depth else excess
    return Click(deeper.x, deeper.y, int(deeper is missing)) if deeper.depth else None


class _Place(NamedTuple):
    """A pixel with its depth: the square of its distance to the outside of the mask; 0 if there is none."""

    depth: int
    y: int
    x: int


def _deepest(mask: NDArray[np.bool_], clicks: Sequence[Click]) -> _Place:
    """The pixel of the mask that is farthest from the outside, without those that were clicked."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return _Place(0, 0, 0)
    top, left = int(rows[0]) - 1, int(columns[0]) - 1
    inside = np.pad(mask[top + 1 : rows[-1] + 1, left + 1 : columns[-1] + 1], 1)
    along = _to_outside(inside) ** 2
    # The distance along the column or the row is an upper bound. Pixels are tried in descending order of this bound,
    # until the bound of the rest is below the best depth.
    bound = np.minimum(along, _to_outside(inside.T).T ** 2)
    for click in clicks:
        if 0 <= click.y - top < len(bound) and 0 <= click.x - left < bound.shape[1]:
            bound[click.y - top, click.x - left] = 0
    best = _Place(0, 0, 0)
    order = np.argsort(-bound, axis=None, kind="stable")[: np.count_nonzero(bound)]
    for start in range(0, len(order), _BLOCK):
        y, x = np.unravel_index(order[start : start + _BLOCK], bound.shape)
        highest = int(bound[y[0], x[0]])
        if highest < best.depth:
            break
        step = np.arange(-math.isqrt(highest), math.isqrt(highest) + 1)
        columns = np.clip(x[:, None] + step, 0, inside.shape[1] - 1)
        depth = (along[y[:, None], columns] + step**2).min(1)
        for i in np.flatnonzero(depth == depth.max()):
            place = _Place(int(depth[i]), int(y[i]), int(x[i]))
            best = min(best, place, key=lambda p: (-p.depth, p.y, p.x))
    return _Place(best.depth, best.y + top, best.x + left)


def _to_outside(inside: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Distance from each pixel to the nearest pixel that is not inside, along its column, in pixels."""
    row = np.arange(len(inside))[:, None]
    above = np.maximum.accumulate(np.where(inside, 0, row), axis=0)
    below = np.minimum.accumulate(np.where(inside, len(inside), row)[::-1], axis=0)[::-1]
    return np.minimum(row - above, below - row)

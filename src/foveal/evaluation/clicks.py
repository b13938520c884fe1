"""The user that click figures are taken with: each click goes to the middle of the larger error.

Source: the clicker of RITM (Sofiiuk et al., "Reviving iterative training with mask guidance for interactive
segmentation", arXiv 2102.06583), which the Segment Anything papers evaluate with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_BLOCK = 1024  # pixels looked at together


class Click(NamedTuple):
    """A pixel, and whether it is to be inside (1) or outside (0)."""

    x: int
    y: int
    label: int


def next_click(target: NDArray[np.bool_], predicted: NDArray[np.bool_], clicks: Sequence[Click] = ()) -> Click | None:
    """Where a user clicks next, who sees what is missing and what is too much.

    That is the pixel farthest from the edge of its error, the image's frame being an edge too; of several the first by
    row, then by column. What is missing goes first only where it reaches deeper. No pixel is clicked twice.

    Args:
        target: the object, ``(H, W)``.
        predicted: what has been found of it; nothing before the first click.
        clicks: those that were made before.

    Returns:
        ``None`` where nothing is left to click.
    """
    missing, excess = (_deepest(error, clicks) for error in (target & ~predicted, predicted & ~target))
    deeper = missing if missing.depth > excess.depth else excess
    return Click(deeper.x, deeper.y, int(deeper is missing)) if deeper.depth else None


class _Place(NamedTuple):
    depth: int
    y: int
    x: int


def _deepest(mask: NDArray[np.bool_], clicks: Sequence[Click]) -> _Place:
    """The pixel of the mask, not clicked yet, farthest from the outside, and the square of that distance; or 0."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return _Place(0, 0, 0)
    top, left = int(rows[0]) - 1, int(columns[0]) - 1
    inside = np.pad(mask[top + 1 : rows[-1] + 1, left + 1 : columns[-1] + 1], 1)
    along = _to_outside(inside) ** 2
    # Outside is never farther than along the column or along the row. Pixels are looked at from the highest of these
    # bounds on, until none can hold more than what has been found.
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
        beside = np.clip(x[:, None] + step, 0, inside.shape[1] - 1)
        depth = (along[y[:, None], beside] + step**2).min(1)
        for i in np.flatnonzero(depth == depth.max()):
            place = _Place(int(depth[i]), int(y[i]), int(x[i]))
            best = min(best, place, key=lambda p: (-p.depth, p.y, p.x))
    return _Place(best.depth, best.y + top, best.x + left)


def _to_outside(inside: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Steps from each pixel to the nearest that is not inside, along its column."""
    row = np.arange(len(inside))[:, None]
    above = np.maximum.accumulate(np.where(inside, 0, row), axis=0)
    below = np.minimum.accumulate(np.where(inside, len(inside), row)[::-1], axis=0)[::-1]
    return np.minimum(row - above, below - row)

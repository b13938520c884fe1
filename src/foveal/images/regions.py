"""Masks as runs of equal pixels, their boxes, and their connected parts."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DependencyError

Runs = NDArray[np.uint32]  # lengths along the columns, outside and inside in turn, outside first: COCO's order


def runs_of(mask: NDArray[np.bool_]) -> Runs:
    """Runs of a mask ``(H, W)``."""
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    first = [0, 0] if flat[0] else [0]
    return np.diff(np.concatenate([first, edges, [flat.size]])).astype(np.uint32)


def mask_of(runs: Runs, size: tuple[int, int]) -> NDArray[np.bool_]:
    """The mask ``(H, W)`` that :func:`runs_of` was given."""
    inside = np.arange(len(runs)) % 2 == 1
    return np.repeat(inside, runs).reshape(size, order="F")


def uncompressed_rle(runs: Runs, size: tuple[int, int]) -> dict[str, Any]:
    """COCO's run-length encoding as lists of numbers."""
    return {"size": list(size), "counts": runs.tolist()}


def coco_rle(runs: Runs, size: tuple[int, int]) -> dict[str, Any]:
    """COCO's compressed run-length encoding, ``counts`` a string that JSON takes.

    Raises:
        DependencyError: pycocotools is not installed.
    """
    found = mask_tools().frPyObjects(uncompressed_rle(runs, size), *size)
    return {"size": list(size), "counts": found["counts"].decode()}


def decoded(segmentation: dict[str, Any]) -> NDArray[np.bool_]:
    """The mask ``(H, W)`` of either run-length encoding.

    Raises:
        DependencyError: it is compressed and pycocotools is not installed.
    """
    height, width = segmentation["size"]
    if isinstance(segmentation["counts"], list):
        return mask_of(np.array(segmentation["counts"], np.uint32), (height, width))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pycocotools 2.0.11 with NumPy 2
        return mask_tools().decode(segmentation).astype(bool)


def mask_tools() -> Any:
    """pycocotools' module for masks.

    Raises:
        DependencyError: it is not installed.
    """
    try:
        from pycocotools import mask
    except ModuleNotFoundError as error:
        raise DependencyError("outlines and runs of objects need pycocotools: pip install 'foveal[coco]'") from error
    return mask


def boxes_of(masks: NDArray[np.bool_]) -> NDArray[np.int64]:
    """x1, y1, x2, y2 of the first and the last pixels: masks ``(N, H, W)``, none of them empty, ``-> (N, 4)``."""
    columns, rows = np.asarray(masks.any(axis=1)), np.asarray(masks.any(axis=2))
    width, height = columns.shape[1], rows.shape[1]
    first = columns.argmax(1), rows.argmax(1)
    last = width - 1 - columns[:, ::-1].argmax(1), height - 1 - rows[:, ::-1].argmax(1)
    return np.stack([*first, *last], 1)


def labelled(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Number the connected parts of a mask, diagonals included.

    Returns:
        ``(H, W)`` with 0 outside and the parts' numbers 1, 2, ..., and their areas, that of part 1 first.
    """
    height, width = mask.shape
    padded = np.zeros((height, width + 2), np.int8)
    padded[:, 1:-1] = mask
    steps = np.diff(padded, axis=1)
    row, start = np.nonzero(steps == 1)
    end = np.nonzero(steps == -1)[1]  # of the run, exclusive
    if not len(row):
        return np.zeros(mask.shape, np.int32), np.zeros(0, np.int64)
    # Runs are sorted by row and column, so those that touch a run in the next row follow each other.
    stride = width + 2
    low = np.searchsorted(row * stride + end, (row + 1) * stride + start, "left")
    high = np.searchsorted(row * stride + start, (row + 1) * stride + end, "right")
    touching = np.maximum(high - low, 0)
    above = np.repeat(np.arange(len(row)), touching)
    below = np.arange(touching.sum()) - np.repeat(touching.cumsum() - touching, touching) + np.repeat(low, touching)
    part = np.arange(len(row))
    while True:  # each run takes the smallest number that it can reach, in ever larger steps
        smallest = np.minimum(part[above], part[below])
        new = part.copy()
        np.minimum.at(new, part[above], smallest)
        np.minimum.at(new, part[below], smallest)
        new = new[new]
        if (new == part).all():
            break
        part = new
    _, part = np.unique(part, return_inverse=True)
    length = end - start
    areas = np.bincount(part, weights=length).astype(np.int64)
    out = np.zeros(mask.shape, np.int32)
    out[mask] = np.repeat(part + 1, length)
    return out, areas


def without_small_parts(mask: NDArray[np.bool_], min_area: int) -> tuple[NDArray[np.bool_], bool]:
    """Fill holes of less than ``min_area`` pixels, then drop such parts; the largest part stays in any case.

    Returns:
        The mask, and whether it was changed.
    """
    holes, areas = labelled(~mask)
    filled = np.concatenate([[False], areas < min_area])[holes]
    parts, areas = labelled(mask | filled)
    kept = areas >= min_area
    if len(areas) and not kept.any():
        kept[areas.argmax()] = True
    return np.concatenate([[False], kept])[parts], bool(filled.any() or not kept.all())

"""Run-length encodings of masks, boxes around masks, and connected parts of masks."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DependencyError

Runs = NDArray[np.uint32]  # run lengths column by column, alternately outside and inside, outside first, as in COCO


def runs_of(mask: NDArray[np.bool_]) -> Runs:
    """Run lengths of a mask ``(H, W)``."""
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    first = [0, 0] if flat[0] else [0]
    return np.diff(np.concatenate([first, edges, [flat.size]])).astype(np.uint32)


def mask_of(runs: Runs, size: tuple[int, int]) -> NDArray[np.bool_]:
    """The mask of this (H, W) from its run lengths: the inverse of :func:`runs_of`."""
    inside = np.arange(len(runs)) % 2 == 1
    return np.repeat(inside, runs).reshape(size, order="F")


def uncompressed_rle(runs: Runs, size: tuple[int, int]) -> dict[str, Any]:
    """COCO's uncompressed run-length encoding: ``counts`` is a list of numbers."""
    return {"size": list(size), "counts": runs.tolist()}


def coco_rle(runs: Runs, size: tuple[int, int]) -> dict[str, Any]:
    """COCO's compressed run-length encoding: ``counts`` is a string, which JSON can store.

    Raises:
        DependencyError: pycocotools is not installed.
    """
    encoding = mask_tools().frPyObjects(uncompressed_rle(runs, size), *size)
    return {"size": list(size), "counts": encoding["counts"].decode()}


def decoded(segmentation: dict[str, Any]) -> NDArray[np.bool_]:
    """Decode either run-length encoding to a mask ``(H, W)``.

    Raises:
        DependencyError: the encoding is compressed, and pycocotools is not installed.
    """
    height, width = segmentation["size"]
    if isinstance(segmentation["counts"], list):
        return mask_of(np.array(segmentation["counts"], np.uint32), (height, width))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pycocotools 2.0.11 with NumPy 2
        return mask_tools().decode(segmentation).astype(bool)


def mask_tools() -> Any:
    """The module ``pycocotools.mask``.

    Raises:
        DependencyError: pycocotools is not installed.
    """
    try:
        from pycocotools import mask
    except ModuleNotFoundError as error:
        raise DependencyError(
            "outlines and run-length encodings of objects need pycocotools: pip install 'foveal[coco]'"
        ) from error
    return mask


def boxes_of(masks: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Bounding boxes of masks: ``(N, H, W) -> (N, 4)``, x1, y1, x2, y2 of the first and the last pixel.

    No mask may be empty.
    """
    columns, rows = np.asarray(masks.any(axis=1)), np.asarray(masks.any(axis=2))
    width, height = columns.shape[1], rows.shape[1]
    first = columns.argmax(1), rows.argmax(1)
    last = width - 1 - columns[:, ::-1].argmax(1), height - 1 - rows[:, ::-1].argmax(1)
    return np.stack([*first, *last], 1)


def label_parts(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Number the connected parts of a mask; diagonal neighbours are connected.

    Runs of pixels in neighbouring rows that touch each other get the same number.

    Returns:
        The number of the part of each pixel, ``(H, W)``: 1, 2, ..., and 0 outside the mask; and the areas in pixels of
        the parts 1, 2, ...
    """
    height, width = mask.shape
    padded = np.zeros((height, width + 2), np.int8)
    padded[:, 1:-1] = mask
    steps = np.diff(padded, axis=1)
    row, start = np.nonzero(steps == 1)
    end = np.nonzero(steps == -1)[1]  # of the run, exclusive
    if not len(row):
        return np.zeros(mask.shape, np.int32), np.zeros(0, np.int64)
    # The runs are sorted by row and column, so the runs of the next row that touch a run are consecutive.
    stride = width + 2
    low = np.searchsorted(row * stride + end, (row + 1) * stride + start, "left")
    high = np.searchsorted(row * stride + start, (row + 1) * stride + end, "right")
    touching = np.maximum(high - low, 0)  # number of runs below each run that touch it
    above = np.repeat(np.arange(len(row)), touching)
    below = np.arange(touching.sum()) - np.repeat(touching.cumsum() - touching, touching) + np.repeat(low, touching)
    part = np.arange(len(row))
    while True:  # each run gets the smallest number among its neighbours, until nothing changes
        smallest = np.minimum(part[above], part[below])
        new = part.copy()
        np.minimum.at(new, part[above], smallest)
        np.minimum.at(new, part[below], smallest)
        new = new[new]  # follow the chain of numbers, which saves most iterations
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
    """Fill holes, then remove parts, of less than ``min_area`` pixels; the largest part always stays.

    Returns:
        The mask, and whether it was changed.
    """
    holes, areas = label_parts(~mask)
    small_holes = np.concatenate([[False], areas < min_area])[holes]
    parts, areas = label_parts(mask | small_holes)
    keep = areas >= min_area
    if len(areas) and not keep.any():
        keep[areas.argmax()] = True
    return np.concatenate([[False], keep])[parts], bool(small_holes.any() or not keep.all())

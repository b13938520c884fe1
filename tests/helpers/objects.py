"""Masks of objects, as arrays, as instances and as files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from foveal.data.instances import Instance

Mask = NDArray[np.bool_]


def rectangle(size: tuple[int, int], rows: slice, columns: slice) -> Mask:
    mask = np.zeros(size, bool)
    mask[rows, columns] = True
    return mask


def instance(mask: Mask, category: int = 0, *, crowd: bool = False) -> Instance:
    rows, columns = np.nonzero(mask)
    box = (float(columns.min()), float(rows.min()), columns.max() + 1.0, rows.max() + 1.0)
    return Instance(mask, category, box, float(mask.sum()), crowd)


def save_ids(path: Path, ids: NDArray[np.uint8] | NDArray[np.uint16]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(ids).save(path)

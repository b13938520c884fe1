"""Small images and masks of segmentation data sets, and the only mask of one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import yaml
from numpy.typing import ArrayLike
from PIL import Image

from foveal.data.segmentation import SegmentationData

SIZE = (6, 8)  # (H, W)


def picture(path: Path, size: tuple[int, int] = SIZE) -> Path:
    """Write a red image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size[::-1], "red").save(path)
    return path


def mask(path: Path, *rows: ArrayLike) -> Path:
    """Write a mask from its first rows (an id, a row of ids, or a colour as a tuple); the last row is repeated."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (SIZE[1], 3) if isinstance(rows[0], tuple) else (SIZE[1],)
    filled = [np.broadcast_to(np.asarray(row, np.uint8), shape) for row in rows]
    filled += [filled[-1]] * (SIZE[0] - len(filled))
    Image.fromarray(np.stack(filled)).save(path)
    return path


def describe(root: Path, **keys: object) -> None:
    (root / "dataset.yaml").write_text(yaml.safe_dump(keys))


def only(root: Path, split: str = "train") -> np.ndarray:
    """The mask of the only pair of a split."""
    data = SegmentationData.open(root, [split])
    assert len(data) == 1
    image, classes = data[0]
    assert image.shape == (*SIZE, 3)
    assert classes.dtype == (np.uint8 if len(data.labels.names) < 256 else np.uint16)
    return classes

"""A photograph with a square object, and what a check of its data set finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from foveal.data.check import DataReport

SIZE = (24, 32)  # (H, W)
SQUARE = [4, 4, 12, 4, 12, 12, 4, 12]  # 8 x 8 pixels


def photo(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*SIZE, 3), np.uint8)).save(path)


def pixels(report: DataReport) -> list[list[int]]:
    return [[*split.pixels.tolist(), split.ignored] for split in report.splits]


REST = SIZE[0] * SIZE[1] - 64

"""Photographs, masks and annotations of made-up exports of labelling tools, and what a check of them finds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from foveal.data.check import check_data

SIZE = (30, 40)  # (H, W)


def photo(path: Path) -> Path:
    """Write a photograph of this size, another one for each length of its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(len(str(path))).integers(0, 255, (*SIZE, 3), np.uint8)).save(path)
    return path


def write_json(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def rectangle(x1: int, y1: int, x2: int, y2: int) -> np.ndarray:
    """A mask with these pixels, the ends left out."""
    mask = np.zeros(SIZE, bool)
    mask[y1:y2, x1:x2] = True
    return mask


def only_problem(root: Path) -> str:
    """The error of the only problem that a check of the data set finds."""
    (problem,) = check_data(root).problems
    return problem.error

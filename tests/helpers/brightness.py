"""A data set for classifiers: dark and bright images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def write_brightness(root: Path, **splits: int) -> Path:
    """Write images of the classes "dark" and "bright", a folder each in every split.

    Args:
        root: folder of the data set.
        splits: number of images of each class, by the name of the split.
    """
    for split, count in splits.items():
        for name, low in (("dark", 0), ("bright", 150)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = np.random.default_rng(index).integers(low, low + 80, (40, 40, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{name}{index}.png")
    return root

"""Write a scene in formats that CVAT exports by datumaro: ``python with_datumaro.py FORMAT OUT``."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from datumaro.components.annotation import AnnotationType, LabelCategories, Mask, MaskCategories
from datumaro.components.dataset import Dataset
from datumaro.components.dataset_base import DatasetItem
from datumaro.components.media import Image

SIZE = (30, 40)
COLOURS = {0: (0, 0, 0), 1: (250, 50, 83), 2: (50, 183, 250)}


def mask(number: int) -> np.ndarray:
    """Class ids of an image: 0 background, 1 cat, 2 dog."""
    ids = np.zeros(SIZE, np.uint8)
    ids[4:16, 3 + number : 15 + number] = 1
    ids[12:24, 10:30] = 2
    return ids


def main(kind: str, out: Path) -> None:
    items = []
    for number, subset in enumerate(("train", "train", "val")):
        ids = mask(number)
        pixels = np.random.default_rng(number).integers(0, 255, (*SIZE, 3), np.uint8)
        shapes = [Mask(image=ids == i, label=i, id=i, group=i, z_order=i) for i in (1, 2)]
        items.append(
            DatasetItem(id=f"a{number}", subset=subset, media=Image.from_numpy(data=pixels), annotations=shapes)
        )
        out.parent.mkdir(parents=True, exist_ok=True)
        np.save(out.parent / f"a{number}.npy", ids)
    names = LabelCategories.from_iterable(["background", "cat", "dog"])
    categories = {AnnotationType.label: names, AnnotationType.mask: MaskCategories(COLOURS)}
    Dataset.from_iterable(items, categories=categories, media_type=Image).export(str(out), kind, save_media=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))

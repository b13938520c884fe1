"""Draw polygons of Cityscapes by its own scripts: ``python with_cityscapes.py OUT``."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from cityscapesscripts.helpers.annotation import Annotation
from cityscapesscripts.preparation.json2labelImg import createLabelImage
from PIL import Image

SIZE = (64, 96)
LABELS = (
    "road", "sidewalk", "car", "cargroup", "person", "license plate", "static", "polegroup", "sky", "out of roi",
    "bicyclegroup", "rider",
)  # fmt: skip


def main(out: Path) -> None:
    for number, split in enumerate(("train", "train", "val")):
        rng = np.random.default_rng(number)
        images, labels = (out / kind / split / "ulm" for kind in ("leftImg8bit", "gtFine"))
        for folder in (images, labels):
            folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (*SIZE, 3), np.uint8)).save(images / f"a{number}_leftImg8bit.png")
        objects = [
            f'{{"label": "{label}", "polygon": {rng.integers(-5, 100, (int(rng.integers(3, 9)), 2)).tolist()}}}'
            for label in rng.permutation(LABELS)
        ]
        text = f'{{"imgHeight": {SIZE[0]}, "imgWidth": {SIZE[1]}, "objects": [{", ".join(objects)}]}}'
        (labels / f"a{number}_gtFine_polygons.json").write_text(text)
        annotation = Annotation()
        annotation.fromJsonText(text)
        np.save(out.parent / f"a{number}.npy", np.asarray(createLabelImage(annotation, "trainIds")))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

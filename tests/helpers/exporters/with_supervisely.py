"""Write a project by Supervisely's own package: ``python with_supervisely.py OUT``."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import supervisely as sly

SIZE = (30, 40)


def main(out: Path) -> None:
    cat, dog = sly.ObjClass("cat", sly.Polygon, [250, 50, 83]), sly.ObjClass("dog", sly.Bitmap, [50, 183, 250])
    project = sly.Project(str(out), sly.OpenMode.CREATE)
    project.set_meta(sly.ProjectMeta(obj_classes=[cat, dog]))
    for split, numbers in (("train", (0, 1)), ("val", (2,))):
        dataset = project.create_dataset(split)
        for number in numbers:
            pixels = np.random.default_rng(number).integers(0, 255, (*SIZE, 3), np.uint8)
            mask = np.zeros(SIZE, bool)
            mask[12:24, 10:30] = True
            mask[15:18, 15:18] = False
            outer = [sly.PointLocation(y, x) for y, x in ((4, 3), (4, 15 + number), (20, 15 + number), (20, 3))]
            labels = [sly.Label(sly.Polygon(outer), cat), sly.Label(sly.Bitmap(mask), dog)]
            annotation = sly.Annotation(SIZE, labels)
            dataset.add_item_np(f"a{number}.png", pixels, ann=annotation)
            ids = np.zeros(SIZE, np.uint8)
            for label, value in zip(labels, (1, 2), strict=True):
                label.geometry.draw(ids, value)
            np.save(out.parent / f"a{number}.npy", ids)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

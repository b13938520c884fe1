"""Write a scene by supervision, the library of Roboflow: ``python with_supervision.py FORMAT OUT``.

FORMAT is "yolo" or "coco"; the folders are those of Roboflow's exports.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import supervision
from PIL import Image

SIZE = (60, 80)


def main(kind: str, out: Path) -> None:
    raw = out.parent / "raw"
    for split, numbers in (("train", (0, 1)), ("valid", (2,))):
        images, annotations = [], {}
        for number in numbers:
            pixels = np.random.default_rng(number).integers(0, 255, (*SIZE, 3), np.uint8)
            file = raw / f"a{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file)
            masks = np.zeros((2, *SIZE), bool)
            masks[0, 4:20, 4 + number : 24 + number] = True
            masks[1, 30:50, 30:70] = True
            np.save(out.parent / f"a{number}.npy", (masks[0] + 2 * masks[1]).astype(np.uint8))
            images.append(str(file))
            boxes = np.array([[4 + number, 4, 23 + number, 19], [30, 30, 69, 49]], float)
            annotations[str(file)] = supervision.Detections(boxes, mask=masks, class_id=np.array([0, 1]))
        data = supervision.DetectionDataset(["cat", "dog"], images, annotations)
        if kind == "yolo":
            data.as_yolo(str(out / split / "images"), str(out / split / "labels"), str(out / "data.yaml"))
        else:
            data.as_coco(str(out / split), str(out / split / "_annotations.coco.json"))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))

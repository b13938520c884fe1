"""Write a scene by labelme's own class for its files: ``python with_labelme.py OUT``."""

from __future__ import annotations

import sys
from pathlib import Path

import labelme
import numpy as np
from labelme import utils
from labelme._label_file import LabelFile
from PIL import Image

SIZE = (30, 40)


def main(out: Path) -> None:
    out.mkdir(parents=True)
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 255, (*SIZE, 3), np.uint8)
        Image.fromarray(pixels).save(out / f"a{number}.png")
        mask = np.zeros((12, 20), bool)
        mask[2:, 5:] = True
        packed = utils.img_arr_to_b64(mask.astype(np.uint8))
        common = {"group_id": None, "flags": {}, "description": "", "other_data": {}}
        square = [[3 + number, 4], [15 + number, 4], [15 + number, 16], [3 + number, 16]]
        shapes = [
            dict(label="cat", points=square, shape_type="polygon", mask=None, **common),
            dict(label="dog", points=[[10, 12], [29, 23]], shape_type="mask", mask=packed, **common),
        ]
        name = out / f"a{number}.json"
        data = LabelFile.load_image_file(str(out / f"a{number}.png"))
        LabelFile().save(
            filename=str(name), shapes=shapes, image_path=f"a{number}.png", image_height=SIZE[0], image_width=SIZE[1],
            image_data=data, other_data={}, flags={},
        )  # fmt: skip
        names = {"_background_": 0, "cat": 1, "dog": 2}
        ids, _ = utils.shapes_to_label((*SIZE, 3), LabelFile(str(name)).shapes, names)
        np.save(out.parent / f"a{number}.npy", ids.astype(np.uint8))
    print(labelme.__version__)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

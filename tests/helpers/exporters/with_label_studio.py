"""Write a scene in Label Studio's formats: ``python with_label_studio.py FORMAT OUT``.

FORMAT is "json": its JSON, with brush masks packed by its own encoder; or "coco", "brush_coco", "png", "numpy":
exported from that JSON by its own converter.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from label_studio_sdk.converter import Converter
from label_studio_sdk.converter.brush import mask2rle
from label_studio_sdk.converter.converter import Format
from PIL import Image

SIZE = (30, 40)
CONFIG = """<View><Image name="image" value="$image"/>
<PolygonLabels name="outline" toName="image"><Label value="cat"/></PolygonLabels>
<BrushLabels name="brush" toName="image"><Label value="dog"/></BrushLabels></View>"""

FORMATS = {
    "coco": Format.COCO,
    "brush_coco": Format.BRUSH_TO_COCO,
    "png": Format.BRUSH_TO_PNG,
    "numpy": Format.BRUSH_TO_NUMPY,
}


def result(kind: str, name: str, label: str, **value: object) -> dict:
    size = {"original_width": SIZE[1], "original_height": SIZE[0], "image_rotation": 0}
    value = {**value, kind: [label]}
    return {**size, "value": value, "id": f"{name}{label}", "from_name": name, "to_name": "image", "type": kind}


def main(kind: str, out: Path) -> None:
    (out / "images").mkdir(parents=True)
    tasks = []
    for number in range(2):
        file = f"0123456{number}-a{number}.png"
        pixels = np.random.default_rng(number).integers(0, 255, (*SIZE, 3), np.uint8)
        Image.fromarray(pixels).save(out / "images" / file)
        ids = np.zeros(SIZE, np.uint8)
        ids[4:16, 4 + 2 * number : 16 + 2 * number] = 1
        corners = [(x / SIZE[1] * 100, y / SIZE[0] * 100) for x, y in square(number)]
        results = [result("polygonlabels", "outline", "cat", points=corners, closed=True)]
        dog = np.zeros(SIZE, np.uint8)
        dog[12:24, 10:30] = 255
        if kind != "coco":
            ids[(dog > 0) & ((ids == 0) | (kind == "json"))] = 2  # COCO has no order; Foveal draws small objects last
            results.append(result("brushlabels", "brush", "dog", format="rle", rle=mask2rle(dog)))
        annotation = {"id": number + 1, "completed_by": 1, "was_cancelled": False, "result": results}
        tasks.append({"id": number + 1, "data": {"image": f"/data/upload/1/{file}"}, "annotations": [annotation]})
        np.save(out.parent / f"0123456{number}-a{number}.npy", ids)
    export = (out if kind == "json" else out.parent) / "project-1-at-2026-01-31-12-00-a1b2c3d4.json"
    export.write_text(json.dumps(tasks))
    if kind != "json":
        converter = Converter(CONFIG, str(out.parent), download_resources=False)
        converter.convert(str(export), str(out), FORMATS[kind], is_dir=False)


def square(number: int) -> list[tuple[int, int]]:
    left = 4 + 2 * number
    return [(left, 4), (left + 12, 4), (left + 12, 16), (left, 16)]


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))

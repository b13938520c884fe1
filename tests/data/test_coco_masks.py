"""Class masks of COCO's annotations: instances, panoptic segments, categories, and what is damaged."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from foveal.data.segmentation import SegmentationData
from foveal.errors import DataError
from helpers.masks import SIZE, describe, mask, only, picture


def coco(root: Path, annotations: list[dict], kind: str = "instances", **more: object) -> Path:
    """One image, 8 x 6, with categories 1, 3 and 90."""
    picture(root / "train2017" / "1.jpg")
    file = root / "annotations" / f"{kind}_train2017.json"
    file.parent.mkdir(exist_ok=True)
    data = {
        "images": [{"id": 1, "file_name": "1.jpg", "height": SIZE[0], "width": SIZE[1]}],
        "categories": [{"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}, {"id": 3, "name": "car"}],
        "annotations": [{"image_id": 1, **annotation} for annotation in annotations],
    }
    file.write_text(json.dumps(data | more))
    return file


def box(x: int, y: int, width: int, height: int) -> list[list[int]]:
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def test_coco_instances(tmp_path: Path) -> None:
    """Polygons, uncompressed and compressed run lengths; smaller objects are drawn in front, whatever the order."""
    from pycocotools import mask as peer

    runs = np.zeros(SIZE, np.uint8)
    runs[5, 7] = 1
    packed = peer.encode(np.asfortranarray(runs))
    plain = {"size": list(SIZE), "counts": [0, 2, 46]}  # column by column: the two topmost pixels of the first
    annotations = [
        {"category_id": 90, "segmentation": box(2, 2, 2, 2)},
        {"category_id": 1, "segmentation": box(1, 1, 5, 4)},
        {"category_id": 3, "segmentation": plain, "iscrowd": 1},
        {"category_id": 3, "segmentation": {"size": list(SIZE), "counts": packed["counts"].decode()}},
        {"category_id": 1, "segmentation": []},
    ]
    coco(tmp_path, annotations)
    expected = np.zeros(SIZE, np.uint8)
    expected[1:5, 1:6] = 1
    expected[2:4, 2:4] = 3
    expected[:2, 0] = 2
    expected[5, 7] = 2
    assert (only(tmp_path) == expected).all()
    data = SegmentationData.open(tmp_path, ["train"])
    assert (data.layout, data.labels.names) == ("coco_instances", ("background", "person", "car", "toothbrush"))


def test_coco_panoptic(tmp_path: Path) -> None:
    """Segment ids use all three channels; 0 is ignored."""
    segments = [{"id": 7, "category_id": 1}, {"id": 65536 + 512 + 3, "category_id": 90}]
    file = coco(tmp_path, [{"file_name": "1.png", "segments_info": segments}], "panoptic")
    mask(file.with_suffix("") / "1.png", (7, 0, 0), (3, 2, 1), (0, 0, 0))
    coco(tmp_path, [])  # the real data set has instances next to them
    assert only(tmp_path)[:3, 0].tolist() == [0, 2, 255]
    data = SegmentationData.open(tmp_path, ["train"])
    assert (data.layout, data.labels.names) == ("coco_panoptic", ("person", "car", "toothbrush"))
    mask(file.with_suffix("") / "1.png", (8, 0, 0))
    with pytest.raises(DataError, match=r"1\.png: segment 8 \(48 pixels\) has no entry in the JSON file"):
        only(tmp_path)


def test_coco_beside_the_images(tmp_path: Path) -> None:
    file = coco(tmp_path, [{"category_id": 1, "segmentation": box(0, 0, 8, 6)}])
    (tmp_path / "train2017").rename(tmp_path / "train")
    file.rename(tmp_path / "train" / "_annotations.coco.json")
    (tmp_path / "annotations").rmdir()
    assert (only(tmp_path) == 1).all()


def test_coco_categories_of_one_name_get_their_ids(tmp_path: Path) -> None:
    coco(tmp_path, [], categories=[{"id": 4, "name": "fish"}, {"id": 7, "name": "fish"}, {"id": 9, "name": "bird"}])
    names = SegmentationData.open(tmp_path, ["train"]).labels.names
    assert names == ("background", "fish (4)", "fish (7)", "bird")


@pytest.mark.parametrize(
    ("annotations", "more", "message"),
    [
        ([{"category_id": 2, "segmentation": box(0, 0, 4, 4)}], {}, "category 2 is not in the list of categories"),
        ([{"category_id": 1, "segmentation": {"size": [6, 8]}}], {}, r"damaged annotation of 1\.jpg"),
        (
            [{"category_id": 1, "segmentation": [[1, 1, 5, 1, math.nan, 4]]}],
            {},
            "a polygon that leaves the image by far",
        ),
        (
            [{"category_id": 1, "segmentation": [[1, 1, 1e30, 1, 1e300, 4]]}],
            {},
            "a polygon that leaves the image by far",
        ),
        ([{"category_id": 1, "segmentation": {"size": [6, 8], "counts": [-5, 53]}}], {}, "run lengths of 48 pixels"),
        ([{"category_id": 1, "segmentation": {"size": [6, 8], "counts": [1, 2, 10**11]}}], {}, "run lengths of 10+3"),
        ([], {"images": [{"id": 1, "file_name": "1.jpg", "height": 8, "width": 6}]}, r"mask of 6x8 .* 1\.jpg of 8x6"),
        ([], {"images": [{"id": 1, "file_name": "2.jpg", "height": 6, "width": 8}]}, "its images are in none of"),
        ([], {"images": [{"id": 1}]}, "not COCO's instances format"),
        ([], {"categories": None}, "not COCO's instances format"),
    ],
)
def test_coco_problems(tmp_path: Path, annotations: list[dict], more: dict, message: str) -> None:
    coco(tmp_path, annotations, **more)
    with pytest.raises(DataError, match=message):
        SegmentationData.open(tmp_path, ["train"])[0]


def test_coco_is_one_file_that_must_be_json(tmp_path: Path) -> None:
    file = coco(tmp_path, [])
    describe(tmp_path, names=["x"])
    with pytest.raises(DataError, match="'names' are not the categories"):
        only(tmp_path)
    (tmp_path / "dataset.yaml").unlink()
    file.write_text("{")
    with pytest.raises(DataError, match=r"instances_train2017\.json: cannot be read as JSON"):
        only(tmp_path)

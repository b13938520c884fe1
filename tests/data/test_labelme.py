"""Files of labelme: shapes, folders, and what is damaged or left out."""

from __future__ import annotations

import base64
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from foveal.data.check import check_data
from foveal.data.instances import InstanceData
from foveal.data.segmentation import SegmentationData
from foveal.errors import DataError
from helpers.outlined import REST, SIZE, SQUARE, photo, pixels


def shape(label: object = "cat", points: object = None, kind: str = "polygon", **more: object) -> dict[str, Any]:
    square = [SQUARE[i : i + 2] for i in range(0, 8, 2)]
    return {
        "label": label,
        "points": square if points is None else points,
        "shape_type": kind,
        "group_id": None,
        **more,
    }


def labelme(folder: Path, *shapes: dict[str, Any], **more: object) -> None:
    photo(folder / "a.png")
    data = {"version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": "a.png", "imageData": None}
    (folder / "a.json").write_text(json.dumps({**data, "imageHeight": SIZE[0], "imageWidth": SIZE[1], **more}))


def png(pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


WHITE = png(np.full((8, 8), 255, np.uint8))


@pytest.mark.parametrize(
    ("shapes", "names", "found"),
    [
        ([shape()], ["cat"], [REST, 64, 0]),
        ([shape(points=[[12, 12], [4, 4]], kind="rectangle")], ["cat"], [REST, 64, 0]),
        ([shape(points=[[4, 4], [11, 11]], kind="mask", mask=WHITE)], ["cat"], [REST, 64, 0]),
        ([shape(points=[[24, 16], [31, 23]], kind="mask", mask=WHITE)], ["cat"], [REST, 64, 0]),
        ([shape("dog"), shape("cat", [[20, 2], [24, 2], [24, 6], [20, 6]])], ["cat", "dog"], [REST - 16, 16, 64, 0]),
        ([shape("__ignore__"), shape("cat", [[20, 2], [24, 2], [24, 6], [20, 6]])], ["cat"], [REST - 16, 16, 64]),
        ([shape(), shape("_background_", [[5, 5], [7, 5], [7, 7], [5, 7]])], ["cat"], [REST + 4, 60, 0]),
        ([], [], [REST + 64, 0]),
    ],
)
def test_shapes_of_labelme(tmp_path: Path, shapes: list[dict[str, Any]], names: list[str], found: list[int]) -> None:
    labelme(tmp_path, *shapes)
    report = check_data(tmp_path)
    assert (report.layout, report.problems, list(report.labels.names[1:])) == ("labelme", [], names)
    assert pixels(report) == [found]


def test_circles_and_groups_of_labelme(tmp_path: Path) -> None:
    labelme(tmp_path, shape(points=[[16, 12], [16, 20]], kind="circle"))
    (found,) = InstanceData.open(tmp_path, ["all"])[0][1]
    assert found.area == pytest.approx(math.pi * 64, rel=0.03)
    parts = [
        shape(group_id=2),
        shape(group_id=2, points=[[20, 2], [24, 2], [24, 6], [20, 6]]),
        shape("dog", group_id=2),
    ]
    labelme(tmp_path, *parts)
    assert [(x.category, x.area) for x in InstanceData.open(tmp_path, ["all"])[0][1]] == [(0, 80), (1, 64)]


@pytest.mark.parametrize(
    ("shapes", "more", "problem"),
    [
        ([shape(label=None)], {}, "shape 1: it has no label"),
        ([shape(), shape(points=[[1, 2], [math.nan, 3], [4, 5]])], {}, "shape 2: a polygon that leaves the image"),
        ([shape(points=[1, 2, 3])], {}, "shape 1: 'points' is not a list of x and y"),
        ([shape(kind="cuboid")], {}, "shape 1: shape_type 'cuboid' is unknown"),
        ([shape(kind="circle")], {}, "shape 1: a circle of 4 points"),
        ([shape(points=[[30, 2], [37, 9]], kind="mask", mask=WHITE)], {}, "shape 1: a mask that leaves the image"),
        ([shape(kind="mask", mask=png(np.zeros((999, 999), np.uint8)))], {}, "shape 1: its mask: 999x999 is 1 mega"),
        ([shape()], {"imageHeight": 60000}, "mask of 32x60000 .W x H. for the image a.png of 32x24"),
        ([shape(points=[], kind="mask", mask=WHITE)], {}, "shape 1: list index out of range"),
        ([shape()], {"shapes": [1]}, "'shapes' is not a list of objects"),
    ],
)  # fmt: skip
def test_labelme_problems(tmp_path: Path, shapes: list[dict[str, Any]], more: dict, problem: str) -> None:
    labelme(tmp_path, *shapes, **more)
    with pytest.raises(DataError, match=problem):
        SegmentationData.open(tmp_path, ["all"])[0]


def test_what_labelme_leaves_out_is_noted(tmp_path: Path) -> None:
    labelme(tmp_path, shape(), shape(points=[[1, 2]], kind="point"), shape(points=[[1, 2], [3, 4]]))
    photo(tmp_path / "later.png")
    notes = check_data(tmp_path).notes
    for text in ("1 shapes of the type 'point'", "1 shapes of the type 'polygon'", "1 images have no JSON file"):
        assert any(text in note for note in notes), notes


@pytest.mark.parametrize(
    ("images", "files", "split"),
    [
        ("train", "train", "train"),
        ("images/val", "images/val", "val"),
        ("batch/one", "batch/one", "all"),
        ("images/train", "labels/train", "train"),
        ("images", "json", "all"),
    ],
)
def test_folders_of_labelme(tmp_path: Path, images: str, files: str, split: str) -> None:
    labelme(tmp_path / images, shape())
    (tmp_path / files).mkdir(parents=True, exist_ok=True)
    (tmp_path / images / "a.json").rename(tmp_path / files / "a.json")
    assert len(SegmentationData.open(tmp_path, [split])) == 1


def test_an_image_that_a_json_file_names(tmp_path: Path) -> None:
    labelme(tmp_path / "images", shape(), imagePath="../images/other.png")
    (tmp_path / "labels").mkdir()
    (tmp_path / "images" / "a.json").rename(tmp_path / "labels" / "a.json")
    (tmp_path / "images" / "a.png").rename(tmp_path / "images" / "other.png")
    assert SegmentationData.open(tmp_path, ["all"]).pairs[0][0].name == "other.png"


def test_labelme_files_do_not_lead_out_of_the_data_set(tmp_path: Path) -> None:
    photo(tmp_path / "outside.png")
    labelme(tmp_path / "data", shape())
    for path in ("../outside.png", str(tmp_path / "outside.png")):
        text = json.loads((tmp_path / "data" / "a.json").read_text())
        (tmp_path / "data" / "b.json").write_text(json.dumps({**text, "imagePath": path}))
        with pytest.raises(DataError, match=r"b\.json: has no image"):
            SegmentationData.open(tmp_path / "data", ["all"])


def test_ignored_regions_are_no_objects(tmp_path: Path) -> None:
    labelme(tmp_path, shape(), shape("__ignore__", points=[[20, 2], [28, 2], [28, 9], [20, 9]]))
    assert len(InstanceData.open(tmp_path, ["all"])[0][1]) == 1


def test_sizes_may_be_texts(tmp_path: Path) -> None:
    labelme(tmp_path, shape(), imageHeight=str(SIZE[0]), imageWidth=str(SIZE[1]))
    assert check_data(tmp_path).problems == []

"""What labelling tools export, by their documented formats: test_exporters.py reads files of the tools themselves.

test_label_studio.py has those of Label Studio.
"""

from __future__ import annotations

import base64
import io
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from foveal.data.check import check_data
from foveal.data.coco_objects import _box
from foveal.data.instances import InstanceData
from foveal.data.label_files import as_id
from foveal.data.segmentation import SegmentationData
from foveal.errors import DataError
from helpers.tool_exports import SIZE, only_problem, photo, rectangle, write_json

# ---- COCO: one file for all images


def coco(*names: str, x: int = 2) -> dict[str, Any]:
    """COCO's JSON with one rectangle in each image."""
    box = [x, 3, x + 10, 3, x + 10, 13, x, 13]
    return {
        "images": [{"id": i, "file_name": n, "width": SIZE[1], "height": SIZE[0]} for i, n in enumerate(names)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "segmentation": [box], "bbox": [x, 3, 10, 10]}
            for i in range(len(names))
        ],
        "categories": [{"id": 1, "name": "cat"}],
    }


@pytest.mark.parametrize(
    ("file", "folder"),
    [
        ("annotations/instances_default.json", "images/default"),  # CVAT
        ("annotations/instances_default.json", "images"),
        ("export of monday.json", "photos"),
        ("my_coco.json", "."),
        ("annotations/all.json", "images"),
    ],
)
def test_one_coco_file_is_divided(tmp_path: Path, file: str, folder: str) -> None:
    names = [f"{i}.png" for i in range(10)]
    for name in names:
        photo(tmp_path / folder / name)
    write_json(tmp_path / file, coco(*names))
    (tmp_path / "dataset.yaml").write_text("val_share: 0.3\n")
    train, val = (SegmentationData.open(tmp_path, [split]) for split in ("train", "val"))
    assert (train.layout, len(train), len(val)) == ("coco_instances", 7, 3)
    assert {path for path, _ in train.pairs}.isdisjoint(path for path, _ in val.pairs)
    assert np.array_equal(train[0][1] == 1, rectangle(2, 3, 12, 13))
    (tmp_path / "dataset.yaml").unlink()
    with pytest.raises(DataError, match=r"no splits; write 'val_share: 0\.1'"):
        SegmentationData.open(tmp_path, ["train"])


def test_subsets_of_cvat(tmp_path: Path) -> None:
    for split, name in (("Train", "a.png"), ("Validation", "b.png")):
        photo(tmp_path / "images" / split / name)
        write_json(tmp_path / "annotations" / f"instances_{split}.json", coco(name))
    assert [len(SegmentationData.open(tmp_path, [split])) for split in ("train", "val")] == [1, 1]


@pytest.mark.parametrize(
    "name", ["/data/upload/1/0a-a%20b.png", "https://host/x/0a-a%20b.png?size=1", "../../u/upload/0a-a b.png"]
)
def test_images_by_the_address_on_a_server(tmp_path: Path, name: str) -> None:
    photo(tmp_path / "images" / "0a-a b.png")
    write_json(tmp_path / "result.json", coco(name))
    assert SegmentationData.open(tmp_path, ["all"])[0][1].any()


def test_other_json_files_are_no_annotations(tmp_path: Path) -> None:
    photo(tmp_path / "a.png")
    write_json(tmp_path / "a.json", coco("a.png"))
    write_json(tmp_path / "b.json", coco("a.png", x=20))
    with pytest.raises(DataError, match="no layout fits"):
        SegmentationData.open(tmp_path, ["all"])


# ---- Roboflow's masks


def roboflow(root: Path, table: str = "Pixel Value, Class\n0, background\n5, cat\n") -> Path:
    for split in ("train", "valid"):
        photo(root / split / "a_jpg.rf.1f.jpg")
        Image.fromarray(rectangle(4, 4, 20, 20).astype(np.uint8) * 5).save(root / split / "a_jpg.rf.1f_mask.png")
        (root / split / "_classes.csv").write_text(table)
    return root


def test_roboflow_masks(tmp_path: Path) -> None:
    report = check_data(roboflow(tmp_path))
    assert (report.layout, report.problems) == ("roboflow", [])
    data = SegmentationData.open(tmp_path, ["val"])
    assert data.labels.names == ("background", "cat")
    assert np.array_equal(data[0][1], rectangle(4, 4, 20, 20))
    (tmp_path / "valid").rename(tmp_path.parent / "valid")
    (tmp_path / "dataset.yaml").write_text("names: [a, b, c, d, e, f]")
    assert SegmentationData.open(tmp_path, ["train"])[0][1].max() == 5


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ("Pixel Value, Class\n0, background\n", "id 5"),
        ("0,background\nx,cat\n", "line 2: 'x,cat' is not 'id, class'"),
        ("0,background\n5,background\n", "line 2: the id or the class 'background' is there twice"),
        ("Pixel Value, Class\n", "no classes in it"),
        ("0," + "x" * 140_000 + "\n", "field larger than field limit"),
    ],
)
def test_roboflow_problems(tmp_path: Path, table: str, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        SegmentationData.open(roboflow(tmp_path, table), ["train"])[0]


def test_roboflow_files_without_a_partner(tmp_path: Path) -> None:
    roboflow(tmp_path)
    photo(tmp_path / "train" / "b.jpg")
    assert only_problem(tmp_path) == "has no mask; partners have the same stem"
    (tmp_path / "valid" / "_classes.csv").write_text("0,background\n5,dog\n")
    with pytest.raises(DataError, match=r"other classes than in .*: 'cat' missing; 'dog' added"):
        SegmentationData.open(tmp_path, ["val"])


# ---- Supervisely


def bitmap(mask: np.ndarray, kind: str) -> dict[str, Any]:
    """An object as Supervisely packs it: a PNG with a palette, or with alpha, of the rows and columns in use."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    part = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    buffer = io.BytesIO()
    if kind == "P":
        image = Image.fromarray(part.astype(np.uint8), "P")
        image.putpalette([0, 0, 0, 255, 255, 255])
        image.save(buffer, "PNG", transparency=0)
    else:
        Image.fromarray(np.dstack([np.full((*part.shape, 3), 9, np.uint8), part * np.uint8(255)])).save(buffer, "PNG")
    data = base64.b64encode(zlib.compress(buffer.getvalue())).decode()
    origin = [int(columns[0]), int(rows[0])]
    return {"classTitle": "dog", "geometryType": "bitmap", "bitmap": {"data": data, "origin": origin}}


def supervisely(root: Path, *objects: dict[str, Any], splits: tuple[str, ...] = ("train",), **more: object) -> Path:
    classes = [{"title": "cat", "shape": "polygon", "color": "#FA3253"}, {"title": "dog", "color": "#32B7FA"}]
    write_json(root / "meta.json", {"classes": classes, "tags": []})
    for split in splits:
        photo(root / split / "img" / "a.png")
        size = {"height": SIZE[0], "width": SIZE[1]}
        write_json(root / split / "ann" / "a.png.json", {"size": size, "tags": [], "objects": objects, **more})
    return root


def figure(kind: str, exterior: list, interior: list = [], title: str = "cat") -> dict[str, Any]:  # noqa: B006
    return {"classTitle": title, "geometryType": kind, "points": {"exterior": exterior, "interior": interior}}


@pytest.mark.parametrize("kind", ["P", "RGBA"])
def test_supervisely(tmp_path: Path, kind: str) -> None:
    """Later objects are in front of earlier ones, whatever their size; polygons may have holes."""
    outer = [[2, 2], [22, 2], [22, 22], [2, 22]]
    hole = [[4, 4], [8, 4], [8, 8], [4, 8]]
    objects = [
        bitmap(rectangle(20, 20, 24, 24), kind),
        figure("polygon", outer, [hole]),
        figure("rectangle", [[30, 2], [36, 8]], title="dog"),
        figure("point", [[1, 1]]),
    ]
    supervisely(tmp_path, *objects, splits=("train", "val"))
    report = check_data(tmp_path)
    assert (report.layout, report.problems) == ("supervisely", [])
    assert report.notes == ["1 figures of the type 'point' have no area and are left out"]
    data = SegmentationData.open(tmp_path, ["train"])
    assert (data.labels.names, data.labels.palette[1]) == (("background", "cat", "dog"), (250, 50, 83))
    dog, cat = rectangle(20, 20, 24, 24) | rectangle(30, 2, 36, 8), rectangle(2, 2, 22, 22) & ~rectangle(4, 4, 8, 8)
    assert np.array_equal(data[0][1], np.where(cat, 1, np.where(dog, 2, 0)))
    assert len(InstanceData.open(tmp_path, ["train"])[0][1]) == 3


def test_supervisely_without_splits(tmp_path: Path) -> None:
    supervisely(tmp_path, figure("rectangle", [[3, 2], [6, 8]]), splits=("ds0",))
    for name in ("b", "c", "d"):
        photo(tmp_path / "ds0" / "img" / f"{name}.png")
        write_json(tmp_path / "ds0" / "ann" / f"{name}.png.json", {"objects": []})
    photo(tmp_path / "ds0" / "img" / "unlabelled.png")
    assert len(SegmentationData.open(tmp_path, ["all"])) == 4
    (tmp_path / "dataset.yaml").write_text("val_share: 0.4\n")
    assert [len(SegmentationData.open(tmp_path, [split])) for split in ("train", "val")] in ([3, 1], [2, 2], [1, 2])


@pytest.mark.parametrize(
    ("objects", "more", "problem"),
    [
        ([figure("polygon", [[2, 2], [22, 2]])], {}, "object 1: a polygon of 2 numbers"),
        ([figure("polygon", [[2, 2], [22, 2], [3, 9]], title="bird")], {}, "class 'bird' is not in meta.json"),
        ([{"classTitle": "cat", "geometryType": "bitmap"}], {}, "there is no 'bitmap'"),
        ([{**bitmap(rectangle(3, 3, 6, 6), "P"), "bitmap": {"data": "e", "origin": [0, 0]}}], {}, "Invalid base64"),
        ([{**bitmap(rectangle(3, 3, 6, 6), "P"), "bitmap": {"data": "AAAA", "origin": [0, 0]}}], {}, "Error -3"),
        ([], {"size": {"height": 3, "width": 4}}, "mask of 4x3"),
        ([], {"objects": {}}, "'objects' is not a list of objects"),
    ],
)
def test_supervisely_problems(tmp_path: Path, objects: list, more: dict, problem: str) -> None:
    assert problem in only_problem(supervisely(tmp_path, *objects, **more))


def test_supervisely_bitmaps_stay_in_the_image(tmp_path: Path) -> None:
    outside = bitmap(rectangle(30, 3, 36, 6), "P")
    outside["bitmap"]["origin"] = [36, 3]
    assert "leaves the image" in only_problem(supervisely(tmp_path, outside))


# ---- Cityscapes


def polygons(root: Path, *objects: tuple[str, list], **more: object) -> Path:
    photo(root / "leftImg8bit" / "train" / "ulm" / "a_leftImg8bit.png")
    listed = [{"label": label, "polygon": points} for label, points in objects]
    content = {"imgHeight": SIZE[0], "imgWidth": SIZE[1], "objects": listed, **more}
    write_json(root / "gtFine" / "train" / "ulm" / "a_gtFine_polygons.json", content)
    return root


def test_cityscapes_polygons(tmp_path: Path) -> None:
    """Later polygons are in front; groups have the class of one object; what is not learnt is ignored."""
    ground = [[0, 0], [39, 0], [39, 29], [0, 29]]
    box = [[2, 2], [12, 2], [12, 12], [2, 12]]
    shifted = [[x + 15, y] for x, y in box]
    polygons(tmp_path, ("road", ground), ("cargroup", box), ("license plate", box), ("ego vehicle", shifted))
    mask = SegmentationData.open(tmp_path, ["train"])[0][1]
    canvas = Image.new("L", SIZE[::-1], 0)
    ImageDraw.Draw(canvas).polygon([tuple(p) for p in box], fill=13)
    ImageDraw.Draw(canvas).polygon([tuple(p) for p in shifted], fill=255)
    assert np.array_equal(mask, np.asarray(canvas))
    (tmp_path / "dataset.yaml").write_text("names: [car, road]\n")
    assert np.unique(SegmentationData.open(tmp_path, ["train"])[0][1]).tolist() == [0, 1, 255]


@pytest.mark.parametrize(
    ("objects", "more", "problem"),
    [
        ([("zebra", [[1, 1], [5, 1], [5, 5]])], {}, "label 'zebra' is none of the classes"),
        ([("road", [[1, 1], [5, 1]])], {}, "three points are needed"),
        ([("road", [[1, 1], [5, 1], [1e9, 5]])], {}, "leaves the image by far"),
        ([], {"objects": None}, "object of type 'NoneType' has no len"),
        ([], {"imgHeight": 5}, "mask of 40x5"),
    ],
)
def test_cityscapes_problems(tmp_path: Path, objects: list, more: dict, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        SegmentationData.open(polygons(tmp_path, *objects, **more), ["train"])[0]


def test_classes_of_cvat_in_the_folders_of_cityscapes(tmp_path: Path) -> None:
    """The file label_colors.txt numbers the label ids; without it, these are Cityscapes' own."""
    photo(tmp_path / "leftImg8bit" / "train" / "a_leftImg8bit.png")
    mask = tmp_path / "gtFine" / "train" / "a_gtFine_labelIds.png"
    mask.parent.mkdir(parents=True)
    Image.fromarray(rectangle(2, 2, 9, 9).astype(np.uint8)).save(mask)
    (tmp_path / "label_colors.txt").write_text("0 0 0 background\n250 50 83 black cat\n")
    data = SegmentationData.open(tmp_path, ["train"])
    assert data.labels.names == ("background", "black cat")
    assert np.array_equal(data[0][1], rectangle(2, 2, 9, 9))


def test_255_is_a_class_of_roboflow_where_it_has_a_name(tmp_path: Path) -> None:
    roboflow(tmp_path, "0, background\n255, crack\n")
    for mask in tmp_path.rglob("*_mask.png"):
        Image.fromarray(np.array([[0, 255]], np.uint8).repeat(30, 0).repeat(20, 1)).save(mask)
    mask = SegmentationData.open(tmp_path, ["train"])[0][1]
    assert mask[0, 0] == 0
    assert mask[0, -1] == 1


def test_splits_of_one_coco_file_may_be_joined(tmp_path: Path) -> None:
    images = []
    for number in range(10):
        photo(tmp_path / "images" / f"{number}.png")
        images.append({"id": f"1_{number}", "file_name": f"{number}.png", "height": 30, "width": 40})
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "result.json").write_text(json.dumps(content))
    (tmp_path / "dataset.yaml").write_text("val_share: 0.2")
    assert len(SegmentationData.open(tmp_path, ["train", "val"]).pairs) == 10


@pytest.mark.parametrize(("text", "expected"), [("1_11", "1_11"), ("7", 7), (" 7 ", 7), ("7.0", 7), ("a", "a")])
def test_ids_of_digits_are_numbers(text: str, expected: int | str) -> None:
    assert as_id(text) == expected


def test_boxes_beyond_all_numbers_are_none() -> None:
    assert _box([1.7e308, 0, 1.7e308, 5]) is None

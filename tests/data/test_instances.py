"""Objects of a data set in every layout: the same scene, ids of any depth, damaged outlines and annotations."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from foveal.data.check import check_data
from foveal.data.instances import InstanceData
from foveal.errors import DataError
from helpers.objects import instance, rectangle, save_ids

SIZE = (24, 32)
SHAPES = (rectangle(SIZE, slice(2, 10), slice(4, 20)), rectangle(SIZE, slice(12, 20), slice(8, 16)))


def photo(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


def save_as_ids(root: Path) -> None:
    photo(root / "images" / "a.png")
    save_ids(root / "masks" / "a.png", (SHAPES[0] * 1 + SHAPES[1] * 9).astype(np.uint8))


def save_as_polygons(root: Path) -> None:
    photo(root / "images" / "val2017" / "a.png")
    photo(root / "images" / "val2017" / "empty.png", 1)
    lines = []
    for category, mask in enumerate(SHAPES):
        x1, y1, x2, y2 = instance(mask).box
        values = [x / SIZE[1] if i % 2 == 0 else x / SIZE[0] for i, x in enumerate((x1, y1, x2, y1, x2, y2, x1, y2))]
        lines.append(f"{category} {' '.join(map(str, values))}\n")
    (root / "instance" / "val2017").mkdir(parents=True)
    (root / "instance" / "val2017" / "a.txt").write_text("\n".join(lines))


def coco_json(**first: Any) -> dict[str, Any]:
    annotations = []
    for category, mask in enumerate(SHAPES):
        x1, y1, x2, y2 = instance(mask).box
        annotations.append(
            {
                "id": category + 1,
                "image_id": 5,
                "category_id": category + 3,
                "segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": 100.5,
                "iscrowd": 0,
            }
        )
    flat = np.r_[False, SHAPES[1].T.ravel(), False]
    runs = np.diff(np.r_[0, np.flatnonzero(flat[1:] != flat[:-1]), SHAPES[1].size]).tolist()
    annotations[1] |= {"segmentation": {"size": list(SIZE), "counts": runs}, "iscrowd": 1}
    del annotations[1]["area"]
    annotations[0] |= first
    return {
        "images": [{"id": 5, "file_name": "a.png", "height": SIZE[0], "width": SIZE[1]}],
        "categories": [{"id": 3, "name": "x"}, {"id": 4, "name": "y"}],
        "annotations": annotations,
    }


def save_as_coco(root: Path, **first: Any) -> None:
    photo(root / "val2017" / "a.png")
    (root / "annotations").mkdir()
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(coco_json(**first)))


@pytest.mark.parametrize(
    ("save", "layout", "split", "categories"),
    [
        (save_as_ids, "instance_ids", "all", [0, 0]),
        (save_as_polygons, "polygons", "val", [0, 1]),
        (save_as_coco, "coco_instances", "val", [3, 4]),
    ],
)
def test_one_scene_in_every_layout(
    tmp_path: Path, save: Callable[[Path], None], layout: str, split: str, categories: list[int]
) -> None:
    save(tmp_path)
    data = InstanceData.open(tmp_path, [split])
    assert (data.layout, len(data), data.name(0).name) == (layout, 1, "a.png")
    image, found = data[0]
    assert image.shape == (*SIZE, 3)
    assert [x.category for x in found] == categories
    for got, mask in zip(found, SHAPES, strict=True):
        assert (got.mask == mask).all()
        assert got.box == instance(mask).box
    coco = layout == "coco_instances"
    assert [x.area for x in found] == [100.5 if coco else 128, 64]
    assert [x.iscrowd for x in found] == [False, coco]


def test_ids_of_any_depth_ignored_ones_and_black_and_white(tmp_path: Path) -> None:
    for name in "abc":
        photo(tmp_path / "images" / f"{name}.png")
    save_ids(tmp_path / "masks" / "a.png", (SHAPES[0] * 300 + SHAPES[1] * 70).astype(np.uint16))
    save_ids(tmp_path / "masks" / "b.png", (SHAPES[0] * 255 + SHAPES[1] * 1).astype(np.uint8))
    save_ids(tmp_path / "masks" / "c.png", (SHAPES[0] * 255).astype(np.uint8))
    data = InstanceData.open(tmp_path, ["all"])
    assert [[int(x.area) for x in data[i][1]] for i in range(3)] == [[64, 128], [64], [128]]
    (tmp_path / "dataset.yaml").write_text("layout: instance_ids\nignore: []\nval_share: 0.34\n")
    data = InstanceData.open(tmp_path, ["train", "val"])
    assert sorted(len(data[i][1]) for i in range(3)) == [1, 2, 2]
    assert [len(InstanceData.open(tmp_path, [split])) for split in ("train", "val", "all")] == [2, 1, 3]


def test_a_check_counts_objects(tmp_path: Path) -> None:
    for name, save in (("ids", save_as_ids), ("text", save_as_polygons)):
        (tmp_path / name).mkdir()
        save(tmp_path / name)
    found = check_data(tmp_path / "text").to_dict()
    assert (found["layout"], found["problems"], found["splits"]["val"]["objects"]) == ("polygons", [], 2)
    assert "'layout: instance_ids'" in check_data(tmp_path / "ids").problems[0].error
    (tmp_path / "ids" / "dataset.yaml").write_text("layout: instance_ids")
    found = check_data(tmp_path / "ids").to_dict()
    assert (found["layout"], found["problems"], found["splits"]["all"]["objects"]) == ("instance_ids", [], 2)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.2 0.2", "a.txt: line 2: a box, not an outline"),
        ("0 10 10 20 10 20 20", "a.txt: line 2: outlines are relative to width and height"),
        ("0 nan 0.1 0.2 0.1 0.2 0.2", "relative to width and height"),
        ("0 0.1 0.1 0.2 0.1 0.2", "line 2: 5 numbers after the class"),
        ("cat 0.1 0.1 0.2 0.1 0.2 0.2", "line 2: expected numbers only: a class and an outline"),
    ],
)
def test_damaged_outlines(tmp_path: Path, line: str, message: str) -> None:
    save_as_polygons(tmp_path)
    text = tmp_path / "instance" / "val2017" / "a.txt"
    text.write_text(text.read_text().splitlines()[0] + f"\n{line}\n")
    with pytest.raises(DataError, match=message):
        InstanceData.open(tmp_path, ["val"])[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"segmentation": [[1, 2, 3, 4]]}, "damaged annotation of a.png .*a polygon of 4 numbers"),
        ({"segmentation": {"size": [3, 4], "counts": [12]}}, r"run lengths for \[3, 4\], an image of \[24, 32\]"),
        ({"bbox": [1, 2]}, "damaged annotation of a.png"),
    ],
)
def test_damaged_annotations(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    save_as_coco(tmp_path, **change)
    with pytest.raises(DataError, match=message):
        InstanceData.open(tmp_path, ["val"])[0]


def test_folders_that_leave_a_doubt(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no layout with objects fits"):
        InstanceData.open(tmp_path, ["all"])
    save_as_ids(tmp_path)
    (tmp_path / "dataset.yaml").write_text("names: [road, car]")
    with pytest.raises(DataError, match="contain classes; write 'layout: instance_ids'"):
        InstanceData.open(tmp_path, ["all"])
    (tmp_path / "dataset.yaml").write_text("layout: flat")
    with pytest.raises(DataError, match="layout 'flat' has classes"):
        InstanceData.open(tmp_path, ["all"])
    (tmp_path / "dataset.yaml").write_text("layout: polygons")
    with pytest.raises(DataError, match="its folders are not those of layout 'polygons'"):
        InstanceData.open(tmp_path, ["all"])
    (tmp_path / "dataset.yaml").write_text("layout: instance_id")
    with pytest.raises(DataError, match=r"unknown layout 'instance_id'; did you mean 'instance_ids'\?"):
        InstanceData.open(tmp_path, ["all"])
    (tmp_path / "dataset.yaml").unlink()
    photo(tmp_path / "images" / "b.png")
    with pytest.raises(DataError, match=r"b\.png: has no mask; partners have the same stem"):
        InstanceData.open(tmp_path, ["all"])

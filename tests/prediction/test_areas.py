"""Areas of masks: run lengths, polygons and COCO annotations, read again by pycocotools and shapely."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools.coco import COCO
from shapely.geometry import Polygon as Shape

from foveal.errors import ConfigError, InputError
from foveal.info import Labels
from foveal.prediction.areas import ENCODINGS, coco_file, find_areas, find_polygons
from foveal.prediction.results import SegmentResult

NAMES = ("sky", "ground", "car")


def made(seed: int = 0, size: tuple[int, int] = (37, 53)) -> NDArray[np.uint8]:
    """A mask with a ring, single pixels, and areas that touch at corners."""
    rng = np.random.default_rng(seed)
    mask = (rng.random((size[0] // 4 + 1, size[1] // 4 + 1)) * 3).astype(np.uint8).repeat(4, 0).repeat(4, 1)
    mask = np.ascontiguousarray(mask[: size[0], : size[1]])
    mask[2:12, 2:12] = 0
    mask[4:10, 4:10] = 2
    mask[6:8, 6:8] = 1
    mask[14, 40] = (mask[14, 40] + 1) % 3
    return mask


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools 2.0.11 with NumPy 2
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_annotations_add_up_to_the_mask(tmp_path: Path, encoding: str, capsys: pytest.CaptureFixture[str]) -> None:
    masks = {"a.png": made(0), "b.png": made(1, (20, 61))}
    with coco_file(tmp_path / "x.json", NAMES, encoding) as file:  # type: ignore[arg-type]
        for name, mask in masks.items():
            file.add(name, mask)
    coco = COCO(str(tmp_path / "x.json"))
    capsys.readouterr()
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == list(NAMES)
    for image in coco.loadImgs(coco.getImgIds()):
        found = np.full((image["height"], image["width"]), 255)
        for row in coco.loadAnns(coco.getAnnIds(imgIds=image["id"])):
            area = coco.annToMask(row).astype(bool)
            assert (found[area] == 255).all()
            found[area] = row["category_id"] - 1
            assert row["area"] == area.sum()
            rows, columns = np.nonzero(area)
            assert row["bbox"] == [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
        np.testing.assert_array_equal(found, masks[image["file_name"]])


def test_outlines_are_used_where_coco_can_hold_the_area(tmp_path: Path) -> None:
    with coco_file(tmp_path / "x.json", NAMES, "polygons") as file:
        file.add("a.png", made())
    kinds = {type(row["segmentation"]) for row in json.loads((tmp_path / "x.json").read_text())["annotations"]}
    assert kinds == {list, dict}


def test_small_areas_are_left_out() -> None:
    mask = made()
    assert {area.pixels for area in find_areas(mask)} & {1, 2, 3, 4}
    large = list(find_areas(mask, 5))
    assert large
    assert min(area.pixels for area in large) >= 5
    with pytest.raises(ConfigError, match="min_area=0: give 1 pixel or more"):
        list(find_areas(mask, 0))


def test_polygons_cover_the_image() -> None:
    """With their holes; the centre of each pixel lies in a polygon of its class."""
    mask = made()
    polygons = find_polygons(mask, NAMES)
    shapes = [(each, Shape(each.outline, each.holes)) for each in polygons]
    assert sum(shape.area for _, shape in shapes) == mask.size
    assert any(each.holes for each in polygons)
    for index, name in enumerate(NAMES):
        assert sum(shape.area for each, shape in shapes if each.name == name) == (mask == index).sum()


def test_methods_of_a_result(tmp_path: Path) -> None:
    logits = np.zeros((3, 6, 8), np.float32)
    logits[1, 3:] = 5
    logits[2, :2, :2] = 9
    result = SegmentResult(np.zeros((24, 32, 3), np.uint8), logits, (0.25, 0.25), Labels(NAMES))
    assert {area.class_index for area in result.areas()} == {0, 1, 2}
    assert {polygon.name for polygon in result.polygons()} == set(NAMES)
    result.save_coco(tmp_path / "x.json", "photo.jpg", min_area=2)
    content = json.loads((tmp_path / "x.json").read_text())
    assert content["images"] == [{"id": 1, "file_name": "photo.jpg", "height": 24, "width": 32}]
    with pytest.raises(InputError, match=r"are \.json files"):
        result.save_coco(tmp_path / "x.txt")
    with pytest.raises(ConfigError, match="unknown encoding 'polygon' of areas; did you mean 'polygons'"):
        result.save_coco(tmp_path / "y.json", encoding="polygon")  # type: ignore[arg-type]
    assert not (tmp_path / "y.json").exists()

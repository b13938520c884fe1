"""What labelling tools export, by their documented formats: test_exporters.py reads files of the tools themselves."""

from __future__ import annotations

import base64
import io
import itertools
import json
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from foveal.data.check import check_data
from foveal.data.instances import InstanceData
from foveal.data.label_studio import brush_runs
from foveal.data.segmentation import SegmentationData
from foveal.errors import DataError
from foveal.images.regions import mask_of
from helpers.commands import Command

SIZE = (30, 40)
RNG = np.random.default_rng(0)


def photo(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(len(str(path))).integers(0, 255, (*SIZE, 3), np.uint8)).save(path)
    return path


def write_json(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def rectangle(x1: int, y1: int, x2: int, y2: int) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[y1:y2, x1:x2] = True
    return mask


def only_problem(root: Path) -> str:
    (problem,) = check_data(root).problems
    return problem.error


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


# ---- Label Studio


def brush(mask: np.ndarray, sizes: tuple[int, ...] = (3, 4, 8, 16)) -> list[int]:
    """Pack a mask as Label Studio does (rle-pack): runs of equal values, and single values one by one."""
    values = np.repeat(mask.ravel().astype(np.uint8) * 255, 4)
    bits = f"{len(values):032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in sizes)
    edges = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)]
    for start, end in itertools.pairwise(edges):
        while start < end:
            kind = next((k for k, size in enumerate(sizes) if end - start <= 1 << size), len(sizes) - 1)
            count = min(end - start, 1 << sizes[kind])
            literal = count < 6  # of different values in general; here they are equal
            bits += f"{int(not literal)}{kind:02b}{count - 1:0{sizes[kind]}b}"
            bits += "".join(f"{value:08b}" for value in values[start : start + (count if literal else 1)])
            start += count
    bits += "0" * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


@pytest.mark.parametrize("seed", range(4))
def test_brush_masks_are_unpacked(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = (int(rng.integers(1, 40)), int(rng.integers(1, 40)))
    mask = rng.random(size) < rng.random()
    assert np.array_equal(mask_of(brush_runs(brush(mask), size), size), mask)
    assert np.array_equal(mask_of(brush_runs(brush(mask, (1, 2, 5, 9)), size), size), mask)


def result(kind: str, label: str, **value: object) -> dict[str, Any]:
    return {
        "id": "r1", "type": kind, "original_width": SIZE[1], "original_height": SIZE[0], "image_rotation": 0,
        "value": {**value, kind: [label]},
    }  # fmt: skip


def task(image: str, *results: dict[str, Any], **more: object) -> dict[str, Any]:
    return {"id": 1, "data": {"image": image}, "annotations": [{"id": 2, "result": results, **more}]}


def label_studio(root: Path, *tasks: dict[str, Any]) -> Path:
    write_json(root / "project-1-at-2026-01-31.json", tasks)
    return root


def test_label_studio(tmp_path: Path) -> None:
    """Later results are in front of earlier ones; images are found with and without the prefix of an upload."""
    photo(tmp_path / "images" / "a.png")
    photo(tmp_path / "photos" / "b.png")
    outline = result("polygonlabels", "cat", points=[[10, 10], [50, 10], [50, 50], [10, 50]])
    mask = rectangle(10, 10, 30, 20)
    box = {"x": 75, "y": 50, "width": 20, "height": 20, "rotation": 0}
    first = task("/data/upload/1/0123abcd-a.png", outline, result("brushlabels", "dog", format="rle", rle=brush(mask)))
    second = task("/data/local-files/?d=photos/b.png", result("rectanglelabels", "cat", **box))
    label_studio(tmp_path, first, second)
    report = check_data(tmp_path)
    assert (report.layout, report.problems) == ("label_studio", [])
    data = SegmentationData.open(tmp_path, ["all"])
    assert (data.labels.names, [path.name for path, _ in data.pairs]) == (
        ("background", "cat", "dog"),
        ["a.png", "b.png"],
    )
    assert np.array_equal(data[0][1], np.where(mask, 2, rectangle(4, 3, 20, 15)))
    assert np.array_equal(data[1][1], rectangle(30, 15, 38, 21))
    assert len(InstanceData.open(tmp_path, ["all"])[0][1]) == 2


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        ("images", "masks"),
        ("images/train", "masks/train"),
        ("train", "trainannot"),
        ("images", "."),
        (".", "."),
        ("", "."),
        ("images", "project-1-at-2026-01-31/png"),
    ],
)
@pytest.mark.parametrize("suffix", [".png", ".npy"])
def test_label_studio_masks_that_name_no_image(tmp_path: Path, images: str, masks: str, suffix: str) -> None:
    """Its exports "Brush labels to PNG" and "to NumPy" are refused; beside its JSON file, that file is read."""
    mask = rectangle(10, 10, 30, 20)
    if images:
        photo(tmp_path / images / "0123abcd-a.jpg")
    (tmp_path / masks).mkdir(parents=True, exist_ok=True)
    for number in range(2):
        file = tmp_path / masks / f"task-1-annotation-7-by-ann@x.org-brush-big dog-{number}{suffix}"
        np.save(file, mask) if suffix == ".npy" else Image.fromarray(mask.astype(np.uint8) * 255).save(file)
    kind = "NumPy" if suffix == ".npy" else "PNG"
    words = f"'task-1-annotation-7-by-ann@x.org-brush-big dog-0{suffix}' is of Label Studio's export 'Brush labels to"
    error = only_problem(tmp_path)
    assert f"{words} {kind}'" in error
    assert "choose the export 'JSON'" in error
    for opened in (SegmentationData, InstanceData):
        with pytest.raises(DataError, match=re.escape(words)):
            opened.open(tmp_path, ["train"])
    if images in ("images", "."):  # where the images of that export are looked for
        results = task("/data/upload/1/0123abcd-a.jpg", result("brushlabels", "dog", format="rle", rle=brush(mask)))
        label_studio(tmp_path, results)
        data = SegmentationData.open(tmp_path, ["all"])
        assert (data.layout, np.array_equal(data[0][1], mask)) == ("label_studio", True)


def test_training_with_masks_that_name_no_image(tmp_path: Path, cli: Command) -> None:
    photo(tmp_path / "images" / "a.jpg")
    Image.fromarray(np.ones(SIZE, np.uint8)).save(tmp_path / "task-3-annotation-3-by-1-tag-tree-0.png")
    for arguments in (["train", tmp_path, "--out", tmp_path / "run"], ["data", "check", tmp_path]):
        done = cli(*map(str, arguments))
        assert done.returncode == 2 or "data" in arguments
        assert "choose the export 'JSON'" in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_masks_that_were_renamed_with_their_images(tmp_path: Path) -> None:
    """Where images have the names of such masks, the pairs are known."""
    name = "task-1-annotation-7-by-1-brush-cat-0"
    photo(tmp_path / "images" / f"{name}.jpg")
    (tmp_path / "masks").mkdir()
    Image.fromarray(rectangle(2, 3, 12, 13).astype(np.uint8)).save(tmp_path / "masks" / f"{name}.png")
    (tmp_path / "dataset.yaml").write_text("names: [background, cat]")
    assert np.array_equal(SegmentationData.open(tmp_path, ["all"])[0][1], rectangle(2, 3, 12, 13))
    assert check_data(tmp_path).problems == []


def test_label_studio_turns_shapes(tmp_path: Path) -> None:
    """Rectangles turn around their upper left corner, ellipses around their middle, clockwise."""
    photo(tmp_path / "a.png")
    box = result("rectanglelabels", "cat", x=50, y=10, width=25, height=20, rotation=90)
    oval = result("ellipselabels", "dog", x=25, y=60, radiusX=20, radiusY=10, rotation=90)
    label_studio(tmp_path, task("a.png", box, oval))
    mask = SegmentationData.open(tmp_path, ["all"])[0][1]
    assert np.array_equal(mask == 1, rectangle(14, 3, 20, 13))  # 10 x 6 pixels, turned around (20, 3)
    rows, columns = np.nonzero(mask == 2)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (10, 25, 7, 12)  # radii of 8 and 3 around (10, 18)


def test_label_studio_chooses_annotations(tmp_path: Path) -> None:
    photo(tmp_path / "a.png")
    photo(tmp_path / "b.png")
    wrong, right = (result("brushlabels", "cat", rle=brush(rectangle(x, 2, x + 4, 6))) for x in (2, 20))
    several = {"id": 1, "data": {"image": "a.png"}, "annotations": []}
    several["annotations"] = [
        {"result": [wrong]}, {"result": [wrong], "was_cancelled": True}, {"result": [right], "ground_truth": True},
    ]  # fmt: skip
    cancelled = {"data": {"image": "b.png"}, "annotations": [{"result": [], "was_cancelled": True}]}
    label_studio(tmp_path, several, cancelled)
    data = SegmentationData.open(tmp_path, ["all"])
    assert data.notes == (
        "1 images have no annotation and are left out",
        "1 images have several annotations; the ground truth counts, else the first one",
    )
    assert np.array_equal(data[0][1], rectangle(20, 2, 24, 6))


SHORT = brush(rectangle(2, 2, 9, 9))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"rle": SHORT[:20]}, "ends too early"),
        ({"rle": brush(np.ones((3, 3), bool))}, "a brush mask of 36 values, an image of 40x30 pixels"),
        ({"rle": [*SHORT[:4], 255, *SHORT[5:]]}, "a brush mask of 32 bits per value"),
        ({"rle": [1, 2, 999]}, "not a list of bytes"),
        ({"rle": "abc"}, "not a list of bytes"),
        ({"points": [[1, 2]]}, "three points or more"),
        ({}, "there is no 'width'"),
    ],
)
def test_label_studio_problems(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    photo(tmp_path / "a.png")
    label_studio(tmp_path, task("a.png", result("brushlabels", "cat", **change)))
    assert problem in only_problem(tmp_path)


def test_label_studio_files_that_are_missing_or_turned(tmp_path: Path) -> None:
    photo(tmp_path / "a.png")
    turned = {**result("brushlabels", "cat", rle=SHORT), "image_rotation": 90}
    label_studio(tmp_path, task("a.png", turned), task("/data/upload/1/gone.png"), task("../../etc/x.png"))
    errors = [problem.error for problem in check_data(tmp_path).problems]
    assert sum("is neither in" in error for error in errors) == 2
    assert any("rotated in Label Studio" in error for error in errors)


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

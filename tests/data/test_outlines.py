"""Objects of COCO and YOLO: what tools export is read, and what cannot be read or is left out is named."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as peer

from foveal.data import outlines
from foveal.data.check import DataReport, check_data
from foveal.data.instances import InstanceData
from foveal.data.outlines import polygon_runs, rle_runs
from foveal.data.segmentation import SegmentationData
from foveal.errors import ConfigError, DataError
from foveal.images.bands import read_size
from foveal.images.reading import read_image
from foveal.images.regions import mask_of
from helpers.outlined import REST, SIZE, SQUARE, photo, pixels

LINE = " ".join(map(str, [0, *(v / SIZE[1 - i % 2] for i, v in enumerate(SQUARE))]))  # the same for YOLO


def coco(root: Path, edit: Callable[[dict[str, Any], str], object] = lambda data, split: None) -> None:
    """One image per split, with a square in it."""
    for seed, split in enumerate(("train", "val")):
        photo(root / split / f"{split}.png", seed)
        data = {
            "images": [{"id": 1, "file_name": f"{split}.png", "height": SIZE[0], "width": SIZE[1]}],
            "categories": [{"id": 3, "name": "cat"}, {"id": 5, "name": "dog"}],
            "annotations": [{"id": 7, "image_id": 1, "category_id": 3, "segmentation": [SQUARE]}],
        }
        edit(data, split)
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(data))


def first(**keys: object) -> Callable[[dict[str, Any], str], object]:
    return lambda data, split: data["annotations"][0].update(keys)


def image(**keys: object) -> Callable[[dict[str, Any], str], object]:
    return lambda data, split: data["images"][0].update(keys)


def lines(report: DataReport) -> str:
    return "\n".join([*(f"{p.file}: {p.error}" for p in report.problems), *report.notes])


ONE_CAT = [[REST, 64, 0, 0]] * 2


# ---- COCO


@pytest.mark.parametrize(
    "edit",
    [
        first(segmentation=SQUARE),
        first(segmentation=[[[x, y] for x, y in zip(SQUARE[::2], SQUARE[1::2], strict=True)]]),
        first(image_id="1", category_id=3.0),
        lambda data, split: [c.update(id=str(c["id"])) for c in data["categories"]],
        lambda data, split: (data["images"][0].update(id="ab-c"), first(image_id="ab-c")(data, split)),
        image(height=None, width="32"),
        image(file_name="train\\..\\x") and first(iscrowd="0", bbox=None, area=None),
        lambda data, split: data["categories"].insert(0, {"id": 0, "name": "Background"}),
    ],
)
def test_what_tools_export_is_read(tmp_path: Path, edit: Callable[[dict[str, Any], str], object]) -> None:
    coco(tmp_path, edit)
    report = check_data(tmp_path)
    assert not report.problems
    assert (pixels(report), report.labels.names) == (ONE_CAT, ("background", "cat", "dog"))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_json_in_any_unicode(tmp_path: Path, encoding: str) -> None:
    coco(tmp_path)
    file = tmp_path / "annotations" / "instances_train.json"
    file.write_text(file.read_text(), encoding)
    assert pixels(check_data(tmp_path)) == ONE_CAT


@pytest.mark.parametrize(
    ("edit", "found", "note"),
    [
        (first(segmentation=[SQUARE, [9.0, 9.0]]), [REST, 64, 0, 0], "1 of 1 objects have parts of fewer than three"),
        (first(segmentation=[], bbox=[4, 4, 8, 8]), [REST, 0, 0, 64], "1 of 1 objects have a box and no outline"),
        (first(segmentation=None), [REST + 64, 0, 0, 0], "1 of 1 objects have neither outline nor box"),
        (first(segmentation=[[40, 1, 50, 1, 50, 9]]), [REST + 64, 0, 0, 0], "1 objects cover no pixel: annotation 7"),
        (first(segmentation=[[-99, 0, 99, 0, 99, 99, -99, 99]]), [0, REST + 64, 0, 0], "of 1 objects leave the image"),
        (lambda d, s: d["annotations"].append(d["annotations"][0]), [REST, 64, 0, 0], "1 of 2 objects have the id of"),
        (
            lambda d, s: d["annotations"].append({**d["annotations"][0], "id": 8, "image_id": 99}),
            [REST, 64, 0, 0],
            "instances_train.json: 1 of 2 annotations are of images that it does not list: annotation 8 of image 99",
        ),
        (lambda d, s: d["categories"][1].update(name="Cat"), [REST, 64, 0, 0], "'cat', 'Cat' differ in case or spaces"),
    ],
)  # fmt: skip
def test_what_is_unusual_is_noted(
    tmp_path: Path, edit: Callable[[dict[str, Any], str], object], found: list[int], note: str
) -> None:
    coco(tmp_path, edit)
    report = check_data(tmp_path)
    assert not report.problems
    assert pixels(report)[0] == found
    assert any(note in text for text in report.notes), report.notes


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (first(image_id=99), "1 of 1 annotations are of images that it does not list: annotation 7 of image 99"),
        (first(category_id=None), "annotation 7: None where an id is expected"),
        (first(category_id=4), "annotation 7: category 4 is not in the list of categories"),
        (first(segmentation=[[*SQUARE, 1]]), "annotation 7: a polygon of 9 numbers"),
        (first(segmentation=[[1, 2, "3", 4, 5, 6]]), "annotation 7: '3' where a coordinate is expected"),
        (first(segmentation=[[1, 2, 10**400, 4, 5, 6]]), "annotation 7: int too large"),
        (first(segmentation=[[1, 2, math.inf, 4, 5, 6]]), "annotation 7: a polygon that leaves the image by far"),
        (first(segmentation={"size": [24, 32], "counts": [0, 8]}), "run lengths of 8 pixels, an image of 768"),
        (first(segmentation={"size": [24, 32], "counts": "08"}), "run lengths of 8 pixels, an image of 768"),
        (first(segmentation={"size": [24, 32], "counts": "P"}), "a text that is not of run lengths"),
        (first(segmentation={"size": [24, 32], "counts": "oooooooo0"}), "a text with an impossible run length"),
        (first(segmentation={"size": None, "counts": None}), "run lengths for None, an image of [24, 32]"),
        (first(segmentation="x"), "annotation 7: 'x' where polygons or run lengths are expected"),
        (first(bbox=[1, 2]), "annotation 7: [1, 2] where x, y, width and height of a box are expected"),
        (image(file_name="/upload/1/x.jpg"), "image 1: '/upload/1/x.jpg' leads out of the data set"),
        (image(file_name="../../outside.jpg"), "image 1: '../../outside.jpg' leads out of the data set"),
        (image(file_name="C:\\x.jpg"), r"image 1: 'C:\\x.jpg' leads out of the data set"),
        (image(file_name="a" * 5000), "aaa...: File name too long"),
        (image(file_name="a\0\x1b[31m.jpg"), r"'a\x00\x1b[31m.jpg' was looked for"),
        (image(file_name=None), "image 1 has no file_name"),
        (image(height=60000, width=60000), "mask of 60000x60000 (W x H) for the image train.png of 32x24"),
        (image(height=math.inf), "'train.png' has the size [inf, 32]"),
        (lambda d, s: d["images"].append(d["images"][0]), "two images have the same id"),
        (lambda d, s: d["categories"].append({"id": 3, "name": "cow"}), "categories have the id 3: 'cat' and 'cow'"),
        (lambda d, s: d.update(categories=[]), "its list of categories is empty"),
        (lambda d, s: d.update(images=[]), "its list of images is empty"),
        (lambda d, s: d.pop("annotations"), "there is no 'annotations'"),
        (lambda d, s: s == "val" and d["categories"].pop(), "other classes than in train: 'dog' missing"),
        (lambda d, s: s == "val" and d["categories"][1].update(name="Dog"), "than in train: 'Dog' differs in case"),
        (
            lambda d, s: s == "val" and d.update(categories=[{"id": 3, "name": "dog"}, {"id": 5, "name": "cat"}]),
            "other classes than in train: the same names in another order",
        ),
    ],
)  # fmt: skip
def test_what_would_be_learnt_wrongly_is_a_problem(
    tmp_path: Path, edit: Callable[[dict[str, Any], str], object], problem: str
) -> None:
    coco(tmp_path, edit)
    report = check_data(tmp_path)
    assert any(problem in f"{p.file}: {p.error}" for p in report.problems), lines(report)


def test_names_in_dataset_yaml_match_categories_of_all_splits(tmp_path: Path) -> None:
    """The splits number the categories differently, and one of them does not list all."""
    coco(tmp_path, lambda d, s: s == "val" and d.update(categories=[{"id": 3, "name": "dog"}]))
    (tmp_path / "dataset.yaml").write_text("names: [cat, dog]")
    report = check_data(tmp_path)
    assert not report.problems
    assert pixels(report) == [[REST, 64, 0, 0], [REST, 0, 64, 0]]
    (tmp_path / "dataset.yaml").write_text("names: [cat]")
    assert "'dog' is missing; add it, or write 'unknown: ignore'" in lines(check_data(tmp_path))
    (tmp_path / "dataset.yaml").write_text("names: [cat]\nunknown: ignore")
    assert pixels(check_data(tmp_path)) == [[REST, 64, 0], [REST, 0, 64]]


def test_links_stay_inside_the_data_set(tmp_path: Path) -> None:
    root = tmp_path / "data"
    coco(root, image(file_name="in/a.png"))
    photo(tmp_path / "outside" / "a.png")
    for split in ("train", "val"):
        (root / split / "in").symlink_to(tmp_path / "outside")
    assert "'in/a.png' is a link that leads out of the data set" in lines(check_data(root))
    photo(root / "store" / "a.png")
    for split in ("train", "val"):
        (root / split / "in").unlink()
        (root / split / "in").symlink_to("../store")
    assert "leads out" not in lines(check_data(root))


@pytest.mark.parametrize(
    ("file", "images", "keys", "split"),
    [
        ("annotations/train.json", "train", "", "train"),
        ("train.json", "train", "", "train"),
        ("result.json", "images", "", "all"),
        ("labels.json", "data", "val_share: 0.5", "val"),
    ],
)
def test_json_under_other_names(tmp_path: Path, file: str, images: str, keys: str, split: str) -> None:
    for name in "ab":
        photo(tmp_path / images / f"{name}.png")
    data = {
        "images": [{"id": i, "file_name": f"{name}.png"} for i, name in enumerate("ab")],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"id": i, "image_id": i, "category_id": 1, "segmentation": [SQUARE]} for i in range(2)],
    }
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(json.dumps(data))
    if keys:
        (tmp_path / "dataset.yaml").write_text(keys)
    assert len(SegmentationData.open(tmp_path, [split])) == (1 if keys else 2)


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # pycocotools 2.0.11 with NumPy 2
@pytest.mark.parametrize("seed", range(5))
def test_run_lengths_are_those_of_pycocotools(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random(SIZE) < rng.random()
    packed = peer.encode(np.asfortranarray(mask.astype(np.uint8)))
    encoding = {"size": list(SIZE), "counts": packed["counts"].decode()}
    assert (mask_of(rle_runs(encoding, SIZE), SIZE) == mask).all()
    polygons = [rng.uniform(-4, 36, 10).tolist() for _ in range(1 + seed % 3)]
    expected = peer.decode(peer.merge(peer.frPyObjects(polygons, *SIZE))).astype(bool)
    assert (mask_of(polygon_runs(polygons, SIZE), SIZE) == expected).all()


# ---- YOLO


def yolo(root: Path, text: bytes | str = LINE, names: str = "names: [cat]") -> Path:
    for seed, split in enumerate(("train", "val")):
        photo(root / "images" / split / "a.png", seed)
        (root / "labels" / split).mkdir(parents=True, exist_ok=True)
        (root / "labels" / split / "a.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    if names:
        (root / "data.yaml").write_text(names)
    return root


@pytest.mark.parametrize(
    "text",
    [
        LINE,
        "0.0" + LINE[1:],
        b"\xef\xbb\xbf" + LINE.encode(),
        LINE.encode("utf-16"),
        f"\r\n{LINE}\r\n\r\n",
        LINE.replace(" ", "\t"),
    ],
)
def test_outlines_of_yolo_are_class_masks(tmp_path: Path, text: bytes | str) -> None:
    report = check_data(yolo(tmp_path, text))
    assert (report.layout, report.problems, report.labels.names) == ("polygons", [], ("background", "cat"))
    assert pixels(report) == [[REST, 64, 0]] * 2
    assert [split.objects for split in report.splits] == [1, 1]


@pytest.mark.parametrize(
    ("text", "names", "problem"),
    [
        (LINE.replace(" ", ","), "names: [cat]", "train/a.txt: line 1: expected numbers .*found '0,0.12.* by spaces"),
        (f"{LINE}\n0 x", "names: [cat]", "line 2: expected numbers only: .*found 'x'$"),
        ("0.5" + LINE[1:], "names: [cat]", "line 1: class '0.5'; classes are whole numbers from 0"),
        ("1" + LINE[1:], "names: [cat]", "line 1: category 1 is not in the list of categories"),
        ("0 0.5 0.5 0.2 0.2", "names: [cat]", "line 1: a box, not an outline"),
        ("5000" + LINE[1:], "", "class 5000 in a text file; at most 4096 classes"),
        (LINE, "nc: 3\nnames: [cat]", "data.yaml: nc is 3, but 'names' has 1 classes"),
        (LINE, "names: [cat, cat]", "'names': a class has the name of another one"),
        (LINE, "nc: 1", "data.yaml: 'names' is missing"),
        (b"\x80", "names: [cat]", "train/a.txt: cannot be read as text"),
    ],
)  # fmt: skip
def test_yolo_problems(tmp_path: Path, text: bytes | str, names: str, problem: str) -> None:
    yolo(tmp_path, text, names)
    with pytest.raises(DataError, match=problem):
        SegmentationData.open(tmp_path, ["train"])[0]
    assert check_data(tmp_path).problems


def test_names_of_yolo(tmp_path: Path) -> None:
    """From data.yaml, dataset.yaml, classes.txt, and without any of them numbers."""
    yolo(tmp_path, "1" + LINE[1:], "names: {0: background, 1: cat}")
    assert SegmentationData.open(tmp_path, ["val"]).labels.names == ("background", "cat")
    (tmp_path / "data.yaml").unlink()
    data = SegmentationData.open(tmp_path, ["val"])
    assert (data.labels.names, len(data.notes)) == (("background", "class 0", "class 1"), 1)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    assert SegmentationData.open(tmp_path, ["val"]).labels.names == ("background", "cat", "dog")
    (tmp_path / "dataset.yaml").write_text("names: [a, b]")
    assert SegmentationData.open(tmp_path, ["val"]).labels.names == ("background", "a", "b")


def test_images_without_a_text_have_no_objects(tmp_path: Path) -> None:
    yolo(tmp_path)
    photo(tmp_path / "images" / "train" / "empty.png", 5)
    report = check_data(tmp_path)
    assert pixels(report)[0] == [2 * REST + 64, 64, 0]
    assert "train: 1 images have no text file, so no objects: first empty.png" in report.notes
    assert len(InstanceData.open(tmp_path, ["train"])) == 1


def test_texts_beside_the_images(tmp_path: Path) -> None:
    for split in ("train", "val"):
        photo(tmp_path / split / "sub" / "a.png")
        (tmp_path / split / "sub" / "a.txt").write_text(LINE)
        (tmp_path / split / "README.txt").write_text("taken in spring")
    assert pixels(check_data(tmp_path)) == [[REST, 64, 0]] * 2
    for split in ("train", "val"):
        (tmp_path / split / "sub" / "a.txt").write_text("a photograph of a cat")  # captions are not outlines
    assert check_data(tmp_path).layout != "polygons"


# ---- bounds


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda d, s: d.update(annotations=d["annotations"] * 20_000), "20000 objects, at most 10000 are read"),
        (first(segmentation=[[0, 0, 9e5, 0, 9e5, 9e5]]), "polygons of 2700000 pixels in length"),
        (lambda d, s: d.update(annotations=[{**d["annotations"][0], "segmentation": [[0, 0, 4e5, 0, 0, 9]]}] * 99),
         "polygons of 1600018 pixels in length"),
        (lambda d, s: d.update(annotations=[{**d["annotations"][0],
                                             "segmentation": {"size": [24, 32], "counts": [0, 768]}}] * 101),
         "its objects cover the image more than 100 times"),
        (first(segmentation={"size": [24, 32], "counts": [0] * 10_000 + [768]}), "more run lengths than the 768"),
        (first(segmentation={"size": [60000, 60000], "counts": [0, 3_600_000_000]}), "run lengths for [60000, 60000]"),
    ],
)  # fmt: skip
def test_numbers_in_json_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edit: Callable[[dict[str, Any], str], object], problem: str
) -> None:
    monkeypatch.setattr(outlines, "_MAX_LENGTHS", 1_000_000)
    coco(tmp_path, edit)
    assert problem in lines(check_data(tmp_path))


def test_masks_of_noise_are_refused(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    Image.new("RGB", (256, 256)).save(tmp_path / "images" / "a.png")
    Image.fromarray(np.arange(65536, dtype=np.uint16).reshape(256, 256)).save(tmp_path / "masks" / "a.png")
    with pytest.raises(DataError, match=r"65534 objects in an image of 256x256: more than .* FOVEAL_MAX_PIXELS"):
        InstanceData.open(tmp_path, ["all"])[0]


@pytest.mark.parametrize(("suffix", "orientation"), [("tif", 6), ("jpg", 6), ("jpg", 3), ("png", 8)])
def test_sizes_of_upright_images(tmp_path: Path, suffix: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (8, 6)).save(tmp_path / f"a.{suffix}", exif=exif)
    path = tmp_path / f"a.{suffix}"
    assert read_size(path) == read_image(path).shape[:2]
    assert read_size(path) == ((6, 8) if orientation == 3 else (8, 6))


def test_yaml_of_yolo_must_be_yaml(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.yaml"):
        check_data(yolo(tmp_path, LINE, "names: ["))

"""Boxes and clicks on objects: simulated clicks, scores and layouts against closed forms, brute force and scipy."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import distance_transform_edt

import foveal
from foveal.data.check import check_data
from foveal.data.instances import Instance, InstanceData
from foveal.errors import ConfigError, DataError
from foveal.evaluation.boundary import boundary_iou
from foveal.evaluation.clicks import Click, next_click
from foveal.evaluation.coco import CocoScorer
from foveal.evaluation.prompt import ObjectScore, PromptEvaluation, filled_box, iou
from foveal.info import ModelInfo, Preprocess, info_of
from foveal.prediction.predictor import Predictor
from foveal.weights.checkpoints import save_checkpoint
from helpers.commands import Command

Mask = NDArray[np.bool_]


def rectangle(size: tuple[int, int], rows: slice, columns: slice) -> Mask:
    mask = np.zeros(size, bool)
    mask[rows, columns] = True
    return mask


def instance(mask: Mask, category: int = 0, *, crowd: bool = False) -> Instance:
    rows, columns = np.nonzero(mask)
    box = (float(columns.min()), float(rows.min()), columns.max() + 1.0, rows.max() + 1.0)
    return Instance(mask, category, box, float(mask.sum()), crowd)


# ---- clicks


def test_the_first_click_is_in_the_middle() -> None:
    nothing = np.zeros((30, 40), bool)
    odd = rectangle((30, 40), slice(5, 14), slice(10, 25))  # 9 rows, so that row 9 is the middle
    assert next_click(odd, nothing) == Click(14, 9, 1)  # five from top and bottom: the first column five from the left
    even = rectangle((30, 40), slice(5, 15), slice(10, 20))
    assert next_click(even, nothing) == Click(14, 9, 1)  # four in the middle are as deep
    ring = odd & ~rectangle((30, 40), slice(6, 13), slice(11, 24))
    assert next_click(ring, nothing) == Click(10, 5, 1)  # one pixel wide all around
    assert next_click(np.ones((7, 9), bool), np.zeros((7, 9), bool)) == Click(3, 3, 1)  # the frame is an edge


def test_clicks_go_to_the_deeper_error() -> None:
    target = rectangle((30, 40), slice(5, 14), slice(5, 14))
    too_much = target | rectangle((30, 40), slice(20, 31), slice(20, 31))
    assert next_click(target, too_much) == Click(24, 24, 0)  # ten rows to the image's end: both middles tie
    half = rectangle((30, 40), slice(5, 14), slice(5, 10))
    assert next_click(target, half) == Click(11, 6, 1)  # four columns are missing
    # Missing and superfluous are as deep: the superfluous is clicked, as RITM does.
    elsewhere = rectangle((30, 40), slice(20, 29), slice(5, 14))
    assert next_click(target, elsewhere) == Click(9, 24, 0)
    assert next_click(target, target) is None


def test_no_pixel_is_clicked_twice() -> None:
    target = rectangle((9, 9), slice(3, 6), slice(3, 6))
    nothing, clicks = np.zeros((9, 9), bool), []
    while click := next_click(target, nothing, clicks):
        clicks.append(click)
    assert clicks[0] == Click(4, 4, 1)
    assert [click[:2] for click in clicks[1:]] == [(x, y) for y in (3, 4, 5) for x in (3, 4, 5) if (x, y) != (4, 4)]


@given(
    target=arrays(bool, (17, 23), elements=st.sampled_from([True, True, True, False])),
    predicted=arrays(bool, (17, 23), elements=st.booleans()),
    wide=st.booleans(),
    clicked=st.lists(st.tuples(st.integers(0, 22), st.integers(0, 16)), max_size=3),
)
def test_clicks_are_where_an_exact_distance_transform_is_highest(
    target: Mask, predicted: Mask, wide: bool, clicked: list[tuple[int, int]]
) -> None:
    if wide:
        target, predicted = (mask.repeat(3, 0).repeat(2, 1) for mask in (target, predicted & False))
    depths = []
    for error in (target & ~predicted, predicted & ~target):
        found = distance_transform_edt(np.pad(error, 1))
        assert isinstance(found, np.ndarray)
        depths.append(np.round(found[1:-1, 1:-1] ** 2))
        for x, y in clicked:
            depths[-1][y, x] = 0
    missing, excess = depths
    deeper = missing if missing.max() > excess.max() else excess
    y, x = np.unravel_index(deeper.argmax(), deeper.shape)
    expected = Click(int(x), int(y), int(deeper is missing)) if deeper.max() else None
    assert next_click(target, predicted, [Click(x, y, 1) for x, y in clicked]) == expected


# ---- scores


def test_iou_and_filled_boxes() -> None:
    a = rectangle((20, 20), slice(0, 10), slice(0, 10))
    b = rectangle((20, 20), slice(5, 15), slice(5, 15))
    assert (iou(a, b), iou(a, a), iou(a, ~a)) == (25 / 175, 1, 0)
    bent = b & ~rectangle((20, 20), slice(5, 10), slice(5, 10))
    assert (filled_box(instance(bent)) == b).all()
    sloppy = Instance(b, 0, (4.4, 4.6, 15.6, 15.4), 100)  # of pixels that are half inside, those with their centre
    assert (filled_box(sloppy) == rectangle((20, 20), slice(5, 15), slice(4, 16))).all()


def test_boundary_iou_of_nested_squares() -> None:
    """On 100 x 100 pixels the band is round(0.02 x 141.4) = 3 wide; a square of 40 has 40^2 - 34^2 pixels in it."""
    outer = rectangle((100, 100), slice(30, 70), slice(30, 70))
    inner = rectangle((100, 100), slice(31, 69), slice(31, 69))
    shared = 38**2 - 34**2
    assert boundary_iou(outer, inner) == shared / (40**2 - 34**2 + 38**2 - 32**2 - shared)
    assert (boundary_iou(outer, outer), boundary_iou(outer, np.zeros_like(outer))) == (1, 0)
    assert math.isnan(boundary_iou(outer & False, outer & False))


def test_sizes_of_exactly_a_bound_count_on_both_sides() -> None:
    areas = {1: 0.1, 32**2: 0.2, 32**2 + 1: 0.4, 96**2: 0.6, 96**2 + 1: 0.9}
    scores = tuple(ObjectScore("a", 0, area, {"box": (value, value / 2)}) for area, value in areas.items())
    found = PromptEvaluation(scores, 1, "all", 0.5)
    assert [found.count(size) for size in ("all", "small", "medium", "large")] == [5, 2, 3, 2]
    means = found.to_dict()["prompts"]["box"]
    sizes = {"small": 0.15, "medium": 0.4, "large": 0.75}
    assert means == {"miou": 0.44, **sizes, "by_image": 0.44, "boundary_iou": 0.22}
    alone = PromptEvaluation(scores[:1], 1, "all", 0.5).to_dict()["prompts"]["box"]
    assert (alone["small"], alone["medium"]) == (0.1, None)


def test_average_precision_by_hand() -> None:
    """Hit, miss, hit: precision is 1 up to recall 0.5, 2/3 from there on, at COCO's 101 recalls."""
    a, b, c, crowd = (rectangle((50, 50), slice(0, 10), slice(12 * i, 12 * i + 10)) for i in range(4))
    scorer = CocoScorer()
    truth = [instance(a, 7), instance(b, 7), instance(crowd, 7, crowd=True)]
    guesses = [(a, 0.9), (crowd, 0.85), (c, 0.8), (b, 0.7)]  # a crowd is neither hit nor miss
    scorer.add(truth, [{"segmentation": m, "predicted_iou": s, "category_id": 7} for m, s in guesses])
    found = scorer.average_precision()
    expected = (51 + 50 * 2 / 3) / 101
    assert [found[name] for name in ("AP", "AP50", "AP75", "AP small")] == pytest.approx([expected] * 4, abs=1e-9)
    assert math.isnan(found["AP large"])
    # In another class the same masks find nothing.
    other = CocoScorer()
    other.add(truth, [{"segmentation": m, "predicted_iou": s, "category_id": 8} for m, s in guesses])
    assert other.average_precision()["AP"] == 0


def test_average_recall_of_masks_without_classes() -> None:
    """IoU 0.82 passes seven of the ten thresholds. Only the best by score count, image by image."""
    whole = rectangle((50, 50), slice(0, 10), slice(0, 10))
    part = whole.copy()
    part[:2, :9] = False
    other = rectangle((50, 50), slice(20, 30), slice(0, 10))
    runs = {"size": [50, 50], "counts": [20, *[10, 40] * 9, 10, 50 * 50 - 20 - 50 * 9 - 10]}  # down the columns
    first = (
        [instance(whole, 1), instance(other, 2)],
        [
            {"segmentation": part, "predicted_iou": 0.6},
            {"segmentation": runs, "predicted_iou": 0.9},
        ],
    )
    assert foveal.average_recall([first])["AR"] == pytest.approx((0.7 + 1) / 2)
    assert foveal.average_recall([first], 1)["AR"] == pytest.approx(1 / 2)
    missed = [instance(whole)], []
    assert foveal.average_recall([first, missed, ([], first[1])])["AR"] == pytest.approx((0.7 + 1) / 3)
    with pytest.raises(DataError, match=r"have the sizes \[\(40, 50\), \(50, 50\)\]"):
        foveal.average_recall([([instance(whole)], [{"segmentation": part[:40], "predicted_iou": 1}])])


# ---- layouts

SIZE = (24, 32)
SHAPES = (rectangle(SIZE, slice(2, 10), slice(4, 20)), rectangle(SIZE, slice(12, 20), slice(8, 16)))


def photo(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


def save_ids(path: Path, ids: NDArray[np.uint8] | NDArray[np.uint16]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(ids).save(path)


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


# ---- the whole


class Regions:
    """A promptable model of pictures of 64 x 64 whose segments are flat greys.

    The single mask of a box is the filled box. Of the three masks of a box, the one with the highest predicted IoU is
    the part of the box that is not black. Clicks give three masks: the segment under the first click; everything that
    is not black without the segments under negative clicks, with the highest predicted IoU; an empty mask.
    """

    at_once, encoder_id = 64, ""

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        features = np.zeros((1, 256, 64, 64), np.float32)
        features[0, 0] = (batch[0, 0] * 255).round()
        return features

    def decode(
        self,
        embedding: NDArray[np.float32],
        coords: NDArray[np.float32],
        labels: NDArray[np.int64],
        masks: NDArray[np.float32] | None,
        least_iou: float,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        grey = embedding[0, 0]
        logits = np.full((len(coords), 4, 64, 64), -1, np.float32)
        for answers, points, kinds in zip(logits, (coords / 16).round().astype(int), labels.tolist(), strict=True):
            if kinds == [2, 3]:
                (x1, y1), (x2, y2) = points
                answers[0, y1:y2, x1:x2] = 1
                answers[2, y1:y2, x1:x2][grey[y1:y2, x1:x2] > 0] = 1
                continue
            under = [grey[y, x] for x, y in points]
            answers[1][grey == under[0]] = 1
            answers[2][(grey > 0) & ~np.isin(grey, [g for g, kind in zip(under, kinds, strict=True) if kind == 0])] = 1
        iou = np.tile(np.array([0, 0.5, 0.9, 0.1], np.float32), (len(coords), 1))
        return logits.repeat(4, 2).repeat(4, 3), iou


def regions() -> Predictor:
    info = ModelInfo(
        task="prompt", preprocess=Preprocess((0, 0, 0), (1, 1, 1), (64, 64), resample="bilinear", pad=True)
    )
    return Predictor(Regions(), info, "numpy")


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """A square of 100 pixels and a bent shape of 192 in a box of 256; the square; a damaged file; an empty image."""
    ids = np.zeros((64, 64), np.uint8)
    ids[4:14, 6:16], ids[30:46, 20:36] = 1, 2
    ids[30:38, 20:28] = 0
    for name, mask in (("a", ids), ("b", np.where(ids == 1, ids, 0)), ("bad", ids), ("empty", ids * 0)):
        save_ids(tmp_path / "data" / "masks" / f"{name}.png", mask.astype(np.uint8))
        save_ids(tmp_path / "data" / "images" / f"{name}.png", (mask * 100).astype(np.uint8))
    (tmp_path / "data" / "images" / "bad.png").write_bytes(b"no picture")
    return tmp_path


def test_figures_by_hand(scenes: Path) -> None:
    found = foveal.evaluate(regions(), scenes / "data", out=scenes / "out")
    assert isinstance(found, PromptEvaluation)
    assert (found.images, found.count(), found.split, list(found.skipped)) == (2, 3, "all", ["images/bad.png"])
    # One click: both shapes of the first image, the only one of the second. The second click takes the other one away.
    expected = {
        "box": (1 + 192 / 256 + 1) / 3,
        "box, surest of 3": 1,
        "box, best of 3": 1,
        "middle of the box": (100 / 292 + 192 / 292 + 1) / 3,
        "1 click": (100 / 292 + 192 / 292 + 1) / 3,
        "1 click, best of 3": 1,
        "3 clicks": 1,
        "5 clicks": 1,
        "filled box": (1 + 192 / 256 + 1) / 3,
    }
    assert {name: found.miou(name) for name in found.prompts} == pytest.approx(expected)
    assert found.miou_by_image("box") == pytest.approx(((1 + 192 / 256) / 2 + 1) / 2)
    assert found.boundary_iou("box, surest of 3") == 1
    assert found.boundary_iou("filled box") < 0.9
    assert found.average_precision is not None
    assert found.average_precision["AP"] == pytest.approx(1)
    report = json.loads((scenes / "out" / "report.json").read_text())
    assert (report["images"], report["objects"], report["objects_by_size"]["small"]) == (2, 3, 3)
    assert report["prompts"]["1 click"]["miou"] == round(expected["1 click"], 6)
    rows = list(csv.DictReader((scenes / "out" / "per_object.csv").read_text().splitlines()))
    assert [row["filled box"] for row in rows] == ["1.0", "0.75", "1.0"]
    assert len(report["per_object"]) == 3


def test_boxes_or_clicks_alone(scenes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = foveal.evaluate(regions(), scenes / "data", prompts="boxes")
    assert boxes.prompts == ("box", "box, surest of 3", "box, best of 3", "filled box")
    clicks = foveal.evaluate(regions(), scenes / "data", prompts="clicks")
    assert clicks.prompts[:2] == ("middle of the box", "1 click")
    assert clicks.prompts[1:] == ("1 click", "1 click, best of 3", "3 clicks", "5 clicks", "filled box")
    assert clicks.average_precision is None
    monkeypatch.setitem(sys.modules, "pycocotools", None)  # as if it were not installed
    assert foveal.evaluate(regions(), scenes / "data", prompts="boxes").average_precision is None


def test_what_cannot_be_evaluated(scenes: Path) -> None:
    with pytest.raises(ConfigError, match="boundary=True is for models of the task 'segment', this one is"):
        foveal.evaluate(regions(), scenes / "data", boundary=True)
    with pytest.raises(ConfigError, match="prompts='box': give 'all', 'boxes', 'clicks'"):
        foveal.evaluate(regions(), scenes / "data", prompts="box")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="prompts='boxes' is for models of the task 'prompt', this one is"):
        foveal.evaluate("efficientvit_b0.camvid", scenes / "data", prompts="boxes")
    for name in ("a", "b"):
        (scenes / "data" / "images" / f"{name}.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"none of the 3 images of 'all' can be scored; the first: .*a\.png"):
        foveal.evaluate(regions(), scenes / "data")


def test_the_command(scenes: Path, cli: Command) -> None:
    """A real network of random weights: a table, or JSON; what was skipped makes the exit code 1."""
    model = foveal.create_model("efficientvit_b0", task="prompt").eval()
    save_checkpoint(scenes / "net.safetensors", model.state_dict(), info_of(model))
    done = cli("evaluate", scenes / "net.safetensors", scenes / "data", "--json")
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    assert (report["images"], report["objects"], len(report["skipped"])) == (2, 3, 1)
    assert report["prompts"]["filled box"]["miou"] == round((1 + 192 / 256 + 1) / 3, 6)
    assert all(0 <= row["miou"] <= 1 for row in report["prompts"].values())
    assert report["encode_seconds"] > 0
    (scenes / "data" / "images" / "bad.png").unlink()
    (scenes / "data" / "masks" / "bad.png").unlink()
    done = cli("evaluate", scenes / "net.safetensors", scenes / "data", "--prompts", "boxes")
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines() if "%" in line] == [
        "box",
        "box,",
        "box,",
        "filled",
        "masks",
    ]
    assert "2 images of all, 3 objects (3 small, 0 medium, 0 large); encoding takes" in done.stdout

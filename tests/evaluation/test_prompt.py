"""Boxes and clicks on objects: scores against closed forms, and the evaluation of a model whose answers are known."""

from __future__ import annotations

import csv
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import foveal
from foveal.data.instances import Instance
from foveal.errors import ConfigError, DataError
from foveal.evaluation.boundary import boundary_iou
from foveal.evaluation.coco import CocoScorer
from foveal.evaluation.prompt import ObjectScore, PromptEvaluation, filled_box, iou
from foveal.info import ModelInfo, Preprocess, info_of
from foveal.prediction.predictor import Predictor
from foveal.weights.checkpoints import save_checkpoint
from helpers.commands import Command
from helpers.objects import instance, rectangle, save_ids

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


def test_a_wrong_area_leaves_no_object_out(tmp_path: Path) -> None:
    save_ids(tmp_path / "val" / "a.png", np.zeros((64, 64), np.uint8))
    (tmp_path / "annotations").mkdir()
    objects = [
        {"id": number, "image_id": 1, "category_id": 1, "iscrowd": 0, "area": area, "bbox": [4, 4, 10, 10],
         "segmentation": [[4, 4, 14, 4, 14, 14, 4, 14]]}
        for number, area in ((1, 100), (2, 0))
    ]  # fmt: skip
    content = {"images": [{"id": 1, "file_name": "a.png", "height": 64, "width": 64}], "annotations": objects}
    content["categories"] = [{"id": 1, "name": "thing"}]
    (tmp_path / "annotations" / "instances_val.json").write_text(json.dumps(content))
    assert foveal.evaluate(regions(), tmp_path, prompts="boxes").count() == 2


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

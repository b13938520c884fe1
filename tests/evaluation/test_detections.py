"""Masks in a detector's boxes: COCO's tools on the written files give the same scores; bad boxes are named."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import foveal
from foveal.errors import ConfigError, DataError
from foveal.evaluation import evaluate as module
from foveal.evaluation.detections import DetectionEvaluation
from helpers.commands import Command
from helpers.oracle import boxes_on_black, oracle

#: Boxes of the objects, x1, y1, x2, y2, by image; the last image has none.
OBJECTS = {7: [(10, 10, 60, 50), (100, 100, 220, 240)], 3: [(30, 40, 50, 55), (80, 20, 200, 90)], 12: []}


def box(image: int, category: int, corners: tuple[int, int, int, int], score: float) -> dict[str, Any]:
    x1, y1, x2, y2 = corners
    return {"image_id": image, "category_id": category, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}


def detections() -> list[dict[str, Any]]:
    """Three of the four objects, one of them twice and one with the wrong class; a hit on nothing; what is dropped."""
    return [
        box(7, 2, (11, 12, 58, 45), 0.9),
        box(7, 2, (12, 12, 58, 50), 0.4),
        box(7, 2, (101, 101, 150, 170), 0.7),  # the oracle finds the whole object
        box(3, 4, (32, 42, 60, 60), 0.8),
        box(3, 2, (81, 21, 190, 80), 0.6),
        box(12, 2, (5, 5, 60, 60), 0.95),
        box(99, 2, (5, 5, 60, 60), 0.5),
        box(98, 2, (5, 5, 60, 60), 0.5),
        box(3, 41, (5, 5, 60, 60), 0.5),
        box(3, 2, (5, 5, 5, 60), 0.5),
        box(3, 2, (500, 5, 600, 60), 0.5),
    ]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    (root / "val").mkdir(parents=True)
    (root / "annotations").mkdir()
    images, annotations = [], []
    for image, boxes in OBJECTS.items():
        pixels, _ = boxes_on_black(boxes)
        Image.fromarray(pixels).save(root / "val" / f"{image}.png")
        images.append({"id": image, "file_name": f"{image}.png", "height": 256, "width": 256})
        for place, (x1, y1, x2, y2) in enumerate(boxes):
            outline = [[x1, y1, x2, y1, x2, y2, x1, y2]]
            entry = {"image_id": image, "category_id": 2 + 2 * place * (image == 7), "segmentation": outline}
            area = (x2 - x1) * (y2 - y1)
            annotations.append(entry | {"id": len(annotations) + 1, "area": area, "iscrowd": 0})
            annotations[-1]["bbox"] = [x1, y1, x2 - x1, y2 - y1]
    categories = [{"id": 2, "name": "a"}, {"id": 4, "name": "b"}]
    content = {"images": images, "categories": categories, "annotations": annotations}
    (root / "annotations" / "instances_val.json").write_text(json.dumps(content))
    (root / "boxes.json").write_text(json.dumps(detections()))
    return root


def test_scores_are_those_of_cocos_tools(data: Path, tmp_path: Path) -> None:
    found = foveal.evaluate(oracle()[0], data, prompts=data / "boxes.json", out=tmp_path / "out")
    assert isinstance(found, DetectionEvaluation)
    assert (found.images, found.objects, found.boxes) == (3, 4, 6)
    assert found.dropped == {
        "without a width or height": 1,
        "unknown image id 99, 98": 2,
        "unknown category id 41": 1,
        "outside of its image": 1,
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(data / "annotations" / "instances_val.json")
        scores = COCOeval(truth, truth.loadRes(str(tmp_path / "out" / "masks.json")), "segm")
        scores.evaluate()
        scores.accumulate()
        scores.summarize()
    expected = [value if value > -1 else float("nan") for value in scores.stats[:6]]
    assert list(found.average_precision.values()) == pytest.approx(expected, nan_ok=True)
    assert 0.1 < found.average_precision["AP"] < 0.9
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["average_precision"]["AP"] == round(found.average_precision["AP"], 6)
    # The scores of the boxes rank the masks: with equal ones, another order of hits and misses would count.
    for entry in (ranked := detections()):
        entry["score"] = 1 - entry["score"]
    (data / "boxes.json").write_text(json.dumps(ranked))
    other = foveal.evaluate(oracle()[0], data, prompts=str(data / "boxes.json"))
    assert other.average_precision["AP"] != found.average_precision["AP"]


def test_categories_need_numbers(data: Path) -> None:
    file = data / "annotations" / "instances_val.json"
    content = json.loads(file.read_text())
    for entry in (*content["annotations"], *content["categories"]):
        name = "category_id" if "category_id" in entry else "id"
        entry[name] = f"class {entry[name]}"
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match="category id 'class 2': average precision needs whole numbers"):
        foveal.evaluate(oracle()[0], data, prompts=data / "boxes.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{]", r"boxes\.json: cannot be read as JSON"),
        ('{"annotations": []}', r"boxes\.json: a dict at the top instead of a list of \{image_id, category_id, bbox"),
        ('[{"image_id": 7}]', r"boxes\.json: entry 0 is not one of a list of .*no 'category_id'"),
        (json.dumps([box(7, 2, (0, 0, 5, 5), 1) | {"bbox": [1, 2, 3]}]), "entry 0 is not one of"),
        ('[{"image_id": 7, "category_id": 2, "bbox": [1, 2, 3, NaN], "score": 1}]', "not all numbers are finite"),
        ("[]", r"no box for the images of the data, whose ids are 3, 7, 12, \.\.\. \(it is empty\)"),
        (json.dumps([box(70, 2, (0, 0, 5, 5), 1)]), r"whose ids are 3, 7, 12, .*1 boxes: unknown image id 70"),
    ],
)
def test_other_files_are_named(data: Path, content: str, message: str) -> None:
    (data / "boxes.json").write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        foveal.evaluate(oracle()[0], data, prompts=data / "boxes.json")
    assert "\n" not in str(caught.value)


def test_data_without_ids_and_misspelt_words(data: Path, tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / "ids" / folder).mkdir(parents=True)
        Image.fromarray(np.eye(40, dtype=np.uint8)).save(tmp_path / "ids" / folder / "a.png")
    with pytest.raises(DataError, match=r"by the ids of COCO's JSON; .* has the layout instance_ids"):
        foveal.evaluate(oracle()[0], tmp_path / "ids", prompts=data / "boxes.json")
    with pytest.raises(ConfigError, match=r"prompts='boxs': give 'all', 'boxes', 'clicks' or a \.json file of boxes"):
        foveal.evaluate(oracle()[0], data, prompts="boxs")
    with pytest.raises(DataError, match=r"none\.json: cannot be read"):
        foveal.evaluate(oracle()[0], data, prompts="none.json")


def test_the_command(data: Path, tmp_path: Path, cli: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "load", lambda ref, **options: oracle()[0])
    out = tmp_path / "out"
    done = cli("evaluate", "oracle", data, "--prompts", data / "boxes.json", "--out", out)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[:3] == ["AP", "AP50", "AP75"]
    assert "3 images of val, 4 objects, 6 boxes" in done.stdout
    assert "2 boxes left out: unknown image id 99, 98" in done.stdout
    assert len(json.loads((out / "masks.json").read_text())) == 6

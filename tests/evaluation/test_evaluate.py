"""Results of an evaluation: skipped images, files with scores, the picture with examples."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import foveal
from foveal.data.synthetic import NAMES, PALETTE, write_shapes
from foveal.evaluation.boundary import BoundaryScores, boundary_counts
from foveal.evaluation.metrics import SegmentScores
from foveal.evaluation.segment import Evaluation
from foveal.info import Labels, ModelInfo, Preprocess
from foveal.prediction.predictor import Predictor
from helpers.tars import shard


def by_colour(batch: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits at stride 1: how near each pixel's red channel is to one level per class."""
    levels = np.linspace(0, 1, len(NAMES), dtype=np.float32)[:, None, None]
    return -np.abs(batch[:, :1] - levels[None])


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    info = ModelInfo(
        task="segment", num_classes=4, preprocess=Preprocess((0, 0, 0), (1, 1, 1)), labels=Labels(NAMES, PALETTE)
    )
    return Predictor(by_colour, info, "numpy")


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    """12 images; the accuracy of by_colour falls by 3 % from each image to the next."""
    root = write_shapes(tmp_path / "shapes", train=0, val=12, size=(64, 80))
    rng = np.random.default_rng(0)
    for index in range(12):
        mask = np.asarray(Image.open(root / "valannot" / f"{index:04}.png"))
        wrong = rng.random(mask.shape) < 0.03 * index
        red = (np.where(wrong, (mask + 1) % 4, mask) * 85).astype(np.uint8)
        Image.fromarray(np.stack([red, red, red], -1)).save(root / "val" / f"{index:04}.png")
    return root


def test_files_hold_all_of_it(predictor: Predictor, shapes: Path, tmp_path: Path) -> None:
    """The counts of the images add up to those of the data set, and the table agrees with them."""
    found = foveal.evaluate(predictor, shapes, split="val", boundary=True, out=tmp_path / "out")
    out = tmp_path / "out"
    assert sorted(p.name for p in out.iterdir()) == ["per_image.csv", "report.json", "samples.png"]
    report = json.loads((out / "report.json").read_text())
    assert {key: report[key] for key in found.to_dict()} == json.loads(json.dumps(found.to_dict()))
    for key, expected in (
        ("hits", np.diag(found.scores.confusion)),
        ("labelled", found.scores.confusion.sum(1)),
        ("predicted", found.scores.confusion.sum(0)),
    ):
        assert np.sum([row[key] for row in report["per_image"]], axis=0).tolist() == expected.tolist()
    with (out / "per_image.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == [f"val/{i:04}.png" for i in range(12)]
    assert list(rows[0]) == ["image", "miou", "pixel_accuracy", "labelled_pixels", "boundary_f_score", *NAMES]
    for row, image in zip(rows, found.per_image, strict=True):
        assert float(row["miou"]) == pytest.approx(image.miou, abs=1e-6)
        present = [float(row[name]) for name in NAMES if row[name]]
        assert np.mean(present) == pytest.approx(image.miou, abs=1e-6)
        assert int(row["labelled_pixels"]) == 64 * 80
    assert float(rows[0]["boundary_f_score"]) == float(rows[0]["pixel_accuracy"]) == 1.0


def test_boundary_scores_are_those_of_the_masks(predictor: Predictor, shapes: Path) -> None:
    from foveal.data.segmentation import SegmentationData

    data = SegmentationData.open(shapes, ["val"])
    found = foveal.evaluate(predictor, shapes, split="val", boundary=True).boundary
    samples = [data[i] for i in range(len(data))]
    expected = BoundaryScores.gather([boundary_counts(t, predictor.segment(i).mask, 4) for i, t in samples], NAMES)
    assert found is not None
    assert found.to_dict() == expected.to_dict()
    assert foveal.evaluate(predictor, shapes, split="val").boundary is None


def test_without_test_the_split_val_is_scored_and_named(predictor: Predictor, shapes: Path, tmp_path: Path) -> None:
    found = foveal.evaluate(predictor, shapes)
    assert (found.split, found.images) == ("val", 12)
    assert "12 images of val" in found.summary()[0]
    members = [
        (f"a.{ending}", (shapes / folder / "0000.png").read_bytes())
        for folder, ending in (("val", "png"), ("valannot", "mask.png"))
    ]
    shard(tmp_path / "tars" / "train-0.tar", members)
    (tmp_path / "tars" / "dataset.yaml").write_text(f"names: {list(NAMES)}")
    assert foveal.evaluate(predictor, tmp_path / "tars" / "train-0.tar").split == "train"
    with pytest.raises(foveal.DataError, match="no split 'test'"):
        foveal.evaluate(predictor, tmp_path / "tars")


def test_many_absent_classes_are_counted() -> None:
    names = tuple(f"c{i}" for i in range(40))
    found = Evaluation(SegmentScores(np.diag([5, 5, *[0] * 38]), names), (), "val", None)
    assert [row[0] for row in found.table()[1]] == ["c0", "c1"]
    assert found.summary()[-1] == "absent from the data, left out of the table and the means: 38 of 40 classes"


def test_sheet_shows_best_median_and_worst(predictor: Predictor, shapes: Path, tmp_path: Path) -> None:
    """Rows from best to worst; each with the image, its label and the prediction in the data's colours."""
    found = foveal.evaluate(predictor, shapes, split="val", out=tmp_path)
    ranked = found.ranked()
    assert found.per_image[ranked[0]].miou == max(image.miou for image in found.per_image)
    assert found.per_image[ranked[-1]].miou == min(image.miou for image in found.per_image)
    sheet = np.asarray(Image.open(tmp_path / "samples.png"))
    height = len(sheet) // 3
    for row, index in enumerate((ranked[0], ranked[6], ranked[-1])):
        pictures = sheet[row * height :][36 : 36 + 64]
        image, truth, prediction = (pictures[:, left : left + 80] for left in (0, 84, 168))
        expected = np.asarray(Image.open(shapes / "val" / f"{index:04}.png"))
        mask = np.asarray(Image.open(shapes / "valannot" / f"{index:04}.png"))
        assert (image == expected).all()
        assert (truth == np.array(PALETTE)[mask]).all()
        assert (prediction == np.array(PALETTE)[predictor.segment(expected).mask]).all()
        assert (sheet[row * height : row * height + 18] < 128).any()  # something is written above


def test_images_that_cannot_be_scored_are_named_and_left_out(
    predictor: Predictor, shapes: Path, tmp_path: Path
) -> None:
    whole = foveal.evaluate(predictor, shapes, split="val")
    (shapes / "val" / "0003.png").write_bytes((shapes / "val" / "0003.png").read_bytes()[:200])
    Image.new("L", (80, 64), 77).save(shapes / "valannot" / "0005.png")
    Image.new("L", (80, 60)).save(shapes / "valannot" / "0008.png")
    found = foveal.evaluate(predictor, shapes, split="val", out=tmp_path / "out")
    assert found.images == 9
    assert list(found.skipped) == ["val/0003.png", "val/0005.png", "val/0008.png"]
    assert "damaged" in found.skipped["val/0003.png"]
    assert "id 77" in found.skipped["val/0005.png"]
    assert "80x60" in found.skipped["val/0008.png"]
    expected = sum(whole.per_image[i].counts for i in range(12) if i not in (3, 5, 8))
    assert np.array_equal(sum(image.counts for image in found.per_image), expected)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [entry["image"] for entry in report["skipped"]] == list(found.skipped)


def test_nothing_scored_is_an_error(predictor: Predictor, shapes: Path) -> None:
    for path in (shapes / "val").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(foveal.DataError, match=r"none of the 12 images of 'val' can be scored; the first: .*0000\.png"):
        foveal.evaluate(predictor, shapes, split="val")


def test_no_label_at_all_is_an_error(predictor: Predictor, shapes: Path) -> None:
    """As in a test split whose masks are dummies."""
    for path in (shapes / "valannot").iterdir():
        Image.new("L", (80, 64), 255).save(path)
    with pytest.raises(foveal.DataError, match="no labelled pixel in the 12 masks of 'val': nothing to score"):
        foveal.evaluate(predictor, shapes, split="val")


def test_unlabelled_images_have_no_score(predictor: Predictor, shapes: Path, tmp_path: Path) -> None:
    """They count as images, have empty cells in the table, and are not among the examples."""
    Image.new("L", (80, 64), 255).save(shapes / "valannot" / "0000.png")
    found = foveal.evaluate(predictor, shapes, split="val", boundary=True, out=tmp_path)
    assert found.images == 12
    assert np.isnan(found.per_image[0].miou)
    assert 0 not in found.ranked()
    with (tmp_path / "per_image.csv").open(newline="") as file:
        first = next(csv.DictReader(file))
    assert (first["miou"], first["pixel_accuracy"], first["labelled_pixels"]) == ("", "", "0")


def test_an_unwritable_folder_is_reported_before_the_work(predictor: Predictor, shapes: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    (shapes / "val" / "0003.png").write_bytes(b"would be skipped, with a note")
    with pytest.raises(foveal.InputError, match="cannot write"):
        foveal.evaluate(predictor, shapes, split="val", out=tmp_path / "file" / "out")

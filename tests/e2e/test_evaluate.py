"""Evaluation: one matrix over the data set, the same for live and exported models, maps between classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

import foveal
from foveal.data.segmentation import SegmentationData
from foveal.data.synthetic import NAMES
from foveal.training.train import TrainResult


def test_agrees_with_training_and_with_torchmetrics(run: TrainResult, shapes: Path) -> None:
    import torch
    from torchmetrics.classification import MulticlassJaccardIndex

    found = foveal.evaluate(run.folder, shapes, split="val")
    assert found.images == 32
    assert found.miou == pytest.approx(run.value, abs=1e-9)
    metric = MulticlassJaccardIndex(4, average="macro", ignore_index=255)
    predictor, data = foveal.load(run.folder), SegmentationData.open(shapes, ["val"])
    for image, mask in (data[i] for i in range(len(data))):
        metric.update(torch.from_numpy(predictor(image).mask.astype(int)), torch.from_numpy(mask.astype(int)))
    assert found.miou == pytest.approx(float(metric.compute()), abs=1e-6)


def test_exported_model_scores_the_same(run: TrainResult, exported: Path, shapes: Path) -> None:
    live, file = (foveal.evaluate(ref, shapes, split="val") for ref in (run.best, exported))
    assert file.miou == pytest.approx(live.miou, abs=2e-4)


def test_class_map_merges_after_the_argmax(run: TrainResult, shapes: Path, tmp_path: Path) -> None:
    """Calling every shape "disc" must give what merging the two masks by hand gives."""
    mapping = {"ground": "ground", "disc": "disc", "square": "disc", "triangle": "disc"}
    (tmp_path / "map.yaml").write_text(yaml.safe_dump(mapping))
    found = foveal.evaluate(run.best, shapes, split="val", class_map=tmp_path / "map.yaml")
    predictor, data = foveal.load(run.best), SegmentationData.open(shapes, ["val"])
    hits = unions = 0
    for image, mask in (data[i] for i in range(len(data))):
        predicted, target = predictor(image).mask > 0, mask == NAMES.index("disc")
        hits, unions = hits + (predicted & target).sum(), unions + (predicted | target).sum()
    assert found.scores.iou[1] == pytest.approx(hits / unions)


def test_network_input_may_have_another_size(run: TrainResult, shapes: Path) -> None:
    """At another size the score changes, and results stay at the labels' size."""
    own, larger = (foveal.evaluate(run.best, shapes, split="val", size=s) for s in (None, (128, 160)))
    assert larger.size == (128, 160)
    assert larger.scores.confusion.sum() == own.scores.confusion.sum() == 32 * 96 * 96
    assert not np.array_equal(larger.scores.confusion, own.scores.confusion)


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"ground": "ground", "dics": "disc"}, r"the model has no class 'dics'; did you mean 'disc'\?"),
        ({"ground": "grond"}, r"the data has no class 'grond'; did you mean 'ground'\?"),
        ({"ground": "ground"}, "no data class for disc, square, triangle"),
    ],
)
def test_bad_class_maps_are_explained(
    run: TrainResult, shapes: Path, tmp_path: Path, mapping: dict, message: str
) -> None:
    (tmp_path / "map.yaml").write_text(yaml.safe_dump(mapping))
    with pytest.raises(foveal.ConfigError, match=message):
        foveal.evaluate(run.best, shapes, split="val", class_map=tmp_path / "map.yaml")


def test_other_classes_without_a_map_are_refused(run: TrainResult, tmp_path: Path) -> None:
    from PIL import Image

    for folder in ("val", "valannot"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "val" / "a.png")
    Image.new("L", (64, 64)).save(tmp_path / "valannot" / "a.png")
    with pytest.raises(foveal.ConfigError, match="give a class_map"):
        foveal.evaluate(run.best, tmp_path, split="val")

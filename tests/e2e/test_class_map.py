"""A classifier that starts from a classifier of other classes, by a class map."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

import foveal
from foveal.data.synthetic import NAMES
from foveal.training.train import TrainResult
from foveal.weights.checkpoints import read_state

MERGED = {"ground": "ground", "disc": "shape", "square": "shape", "triangle": "shape"}


@pytest.fixture
def merged(shapes: Path, tmp_path: Path) -> Path:
    """A data set with all shapes as one class, a class unknown to the weights, and the ground last; its class map."""
    root = tmp_path / "merged"
    for split in ("train", "val"):
        (root / f"{split}annot").mkdir(parents=True)
        (root / split).symlink_to(shapes / split)
        for file in sorted((shapes / f"{split}annot").iterdir()):
            ids = np.asarray(Image.open(file))
            Image.fromarray(np.where(ids == 0, 2, 0).astype(np.uint8)).save(root / f"{split}annot" / file.name)
    (root / "dataset.yaml").write_text("names: [shape, water, ground]\n")
    (tmp_path / "map.yaml").write_text(yaml.safe_dump(MERGED))
    return root


def train(data: Path, weights: Path, class_map: Path, **more: Any) -> TrainResult:
    settings: dict[str, Any] = {"epochs": 1, "batch_size": 8, "crop": (32, 32), "workers": 0, "ema_decay": 0.0}
    return foveal.train(data, weights=str(weights), class_map=str(class_map), **settings | more)


def test_classes_start_from_the_mean_of_those_they_merge(
    run: TrainResult, shapes: Path, merged: Path, tmp_path: Path
) -> None:
    found = train(merged, run.best, tmp_path / "map.yaml", lr=1e-12, freeze_bn=True, out=tmp_path / "out")
    old, new = (read_state(path)[0] for path in (run.best, found.folder / "last.safetensors"))
    of_shape = [index for index, name in enumerate(NAMES) if MERGED[name] == "shape"]
    for key in ("head.classifier.weight", "head.classifier.bias"):
        assert (new[key][0] - old[key][of_shape].mean(0)).abs().max() < 1e-6
        assert (new[key][2] - old[key][NAMES.index("ground")]).abs().max() < 1e-6
    assert not new["head.classifier.weight"][1].eq(0).any(), "what the map does not name starts at random"
    scores = foveal.evaluate(found.folder / "last.safetensors", merged, split="val").scores
    assert scores.absent == ("water",)
    known = foveal.evaluate(run.best, shapes, split="val").scores.iou[NAMES.index("ground")]
    assert scores.iou[2] > 0.9 * known > 0.5, "it finds the ground as the weights do, without training"


@pytest.mark.parametrize(
    ("mapping", "settings", "message"),
    [
        (MERGED | {"disc": "shap"}, {}, r"the data has no class 'shap'; did you mean 'shape'\?"),
        (MERGED | {"disk": "shape"}, {}, r"the model has no class 'disk'; did you mean 'disc'\?"),
        ({}, {}, "no data class for ground, disc, square, triangle"),
        (MERGED, {"weights": ""}, "needs weights: give weights too"),
        (MERGED, {"weights": "sam", "model": "tf_efficientnet_lite0"}, "has no classifier of pixels to start from"),
    ],
)
def test_what_cannot_be_a_start(
    run: TrainResult, merged: Path, tmp_path: Path, mapping: dict[str, str], settings: dict[str, Any], message: str
) -> None:
    (tmp_path / "map.yaml").write_text(yaml.safe_dump(mapping))
    weights = settings.pop("weights", run.best)
    with pytest.raises(foveal.FovealError, match=message):
        train(merged, weights, tmp_path / "map.yaml", out=tmp_path / "out", **settings)

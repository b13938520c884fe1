"""Models without a result for an image: they say so, and their runners give features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import foveal
from foveal.errors import ConfigError

IMAGE = np.zeros((64, 64, 3), np.uint8)


def test_a_runner_of_a_backbone_gives_its_maps(tmp_path: Path) -> None:
    foveal.save_pretrained(foveal.create_model("efficientvit_b0", features_only=True), tmp_path)
    maps = foveal.load(tmp_path).runner(np.zeros((1, 3, 64, 64), np.float32))
    assert [each.shape[2] for each in maps] == [16, 8, 4, 2]


def test_a_classifier_without_classes_gives_features(tmp_path: Path) -> None:
    foveal.save_pretrained(foveal.create_model("efficientvit_b0", num_classes=0), tmp_path)
    predictor = foveal.load(tmp_path)
    for predict in (predictor, predictor.classify, lambda image: predictor([image])):
        with pytest.raises(ConfigError, match=r"has no classes \(num_classes=0\), its output is features"):
            predict(IMAGE)
    assert predictor.runner(np.zeros((1, 3, 64, 64), np.float32)).shape[0] == 1

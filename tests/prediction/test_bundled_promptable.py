"""The promptable weights in the package, on the photograph in the package."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import foveal
from foveal import assets
from foveal.images.reading import read_image, read_mask
from foveal.prediction.prompting import Embedding

REF = assets.DEFAULTS["prompt"]
STREET = assets.path("street", ".jpg")
CARS = {(714, 443, 1013, 669): (860, 560), (610, 490, 739, 601): (672, 539), (550, 484, 631, 556): (581, 514)}
CAR, UNLABELLED = 8, 255


@pytest.fixture(scope="module")
def seen() -> Embedding:
    return foveal.load(REF).encode(STREET)


def test_cars_by_their_boxes(seen: Embedding) -> None:
    """The hand-made label is coarse: what it leaves out is not counted, and one car's box holds some of the next."""
    label = read_mask(assets.path("street.label", ".png"))
    found = seen.prompt(boxes=[list(box) for box in CARS], multimask=False)
    for (left, top, right, bottom), mask in zip(CARS, found.best, strict=True):
        car = np.zeros_like(mask)
        car[top:bottom, left:right] = label[top:bottom, left:right] == CAR
        union = (mask | car) & (label != UNLABELLED)
        assert (mask & car).sum() > 0.75 * union.sum()


def test_one_of_three_masks_of_a_click_is_the_car(seen: Embedding) -> None:
    boxes = seen.prompt(boxes=[list(box) for box in CARS], multimask=False).best
    clicks = seen.prompt(points=[[point] for point in CARS.values()], labels=[[1]] * len(CARS)).masks
    for car, masks in zip(boxes, clicks, strict=True):
        assert max((mask & car).sum() / (mask | car).sum() for mask in masks) > 0.5


def test_the_command_needs_no_network(tmp_path: Path) -> None:
    """No model named, no cache, no hub, no index: the weights come with the package."""
    nothing = {"HF_HUB_OFFLINE": "1", "PIP_NO_INDEX": "1", "XDG_CACHE_HOME": str(tmp_path), "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "foveal", "prompt", str(STREET), "--box", "714,443,1013,669", "--single", "--json"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "car.png")], capture_output=True, text=True, env={**os.environ, **nothing}
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"] == REF
    car = read_image(tmp_path / "car.png")[..., 0] == 255
    assert 0.5 < car[443:669, 714:1013].mean() < 0.95
    assert car.sum() == pytest.approx(car[443:669, 714:1013].sum(), rel=0.05)


def test_its_card_and_its_size() -> None:
    """Half a float for each parameter: at most 25 MB in the package."""
    file, card = assets.path(REF, ".safetensors"), assets.path(REF, ".md")
    assert file.stat().st_size < 25e6
    info = foveal.load(REF).info
    assert (info.model, info.tag, info.task, info.licence) == ("tf_efficientnet_lite0", "sam", "prompt", "Apache-2.0")
    assert assets.WEIGHTS[REF].licence in card.read_text(encoding="utf-8")


def test_everything_finds_masks_with_the_weights_own_thresholds() -> None:
    """The student is never as sure as SAM: with SAM's thresholds nothing of this photograph would be found."""
    predictor = foveal.load("tf_efficientnet_lite0.sam")
    photo = read_image(STREET)[::2, ::2]
    found = predictor.everything(photo, points_per_side=6)
    assert len(found) >= 4
    assert (
        predictor.everything(photo, points_per_side=6, pred_iou_thresh=0.88, stability_score_thresh=0.95).records == []
    )


def test_masks_of_values_that_are_not_finite_are_refused() -> None:
    embedding = foveal.load("tf_efficientnet_lite0.sam", runtime="onnxruntime").encode(np.zeros((64, 64, 3), np.uint8))
    embedding = dataclasses.replace(embedding, features=np.full_like(embedding.features, np.nan))
    with pytest.raises(foveal.InputError, match="not finite"):
        embedding.prompt([[5, 5]], [1])

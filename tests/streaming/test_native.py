"""Passes whose convolutions the native engine computes give what the whole image gives in one pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import foveal
from foveal.errors import ConfigError
from foveal.models.efficientvit import Config
from foveal.prediction.predictor import Predictor
from foveal.prediction.torch_runner import TorchRunner
from helpers.streams import XL, B, L, compare, predictor_for, randomised, segmenter, stripes


@pytest.mark.parametrize("config", [B, L, XL], ids=["B", "L", "XL"])
@pytest.mark.parametrize("optimised", [False, True], ids=["plain", "optimised"])
def test_segmentation_equals_the_whole_image(config: Config, optimised: bool) -> None:
    model = segmenter(config, every_class=False)
    model = foveal.optimize(model) if optimised else model
    torch.manual_seed(2)
    for size, side in (((75, 101), 2), ((75, 101), 1), ((64, 33), None)):
        least = 25 if optimised else 8
        compare(model, torch.randn(1, 3, *size), (side,), native=True, least=least, upsample=False)


@pytest.mark.parametrize(
    ("name", "options", "least"),
    [
        ("mobilenetv2_100", {}, 50),
        ("mobilenetv3_small_100", {"features_only": True}, 20),
        ("efficientvit_sr", {"task": "upscale", "scale": 2}, 10),
    ],
    ids=str,
)
def test_other_families(name: str, options: dict[str, Any], least: int) -> None:
    model = foveal.optimize(randomised(foveal.create_model(name, **options)))
    compare(model, torch.rand(1, 3, 77, 90), (2,), native=True, least=least)


def test_mask_of_a_file(tmp_path: Path) -> None:
    """Pieces of two sizes, also those that end at the border of the image."""
    predictor, image = predictor_for(segmenter()), stripes(150, 201)
    expected = predictor.segment(image).mask
    for tile in (48, None):
        foveal.stream(predictor, image, tmp_path / "mask.npy", tile=tile, runtime="native")
        assert (np.load(tmp_path / "mask.npy") == expected).mean() > 0.9999


def test_what_the_engine_cannot_do_is_refused() -> None:
    predictor = predictor_for(segmenter())
    with pytest.raises(ConfigError, match="runtime='openvino': give torch, native or onnxruntime"):
        foveal.stream(predictor, stripes(40, 40), runtime="openvino")
    half = TorchRunner(segmenter().bfloat16(), dtype=torch.bfloat16)
    with pytest.raises(ConfigError, match="runtime='native' computes in float32 on the CPU"):
        foveal.stream(Predictor(half, predictor.info, "torch"), stripes(40, 40), runtime="native")

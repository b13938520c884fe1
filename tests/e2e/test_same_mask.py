"""One photograph, one model, every runtime: the same classes at every pixel.

Weights are random where none are in the package, and the same for all runtimes. All files are written by the export and
opened by ``foveal.load``, so that preparation, network and argmax are those of users.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

import foveal
from foveal import assets
from foveal.factory.create import list_models
from foveal.info import info_of
from foveal.prediction.predictor import Predictor
from foveal.prediction.torch_runner import TorchRunner

SIZE = (96, 160)  # of the photograph: small, since the largest networks run in seven runtimes
CLASSES = 5
FORMATS = ("onnx", "openvino", "native", "executorch", "litert")
#: Formats whose files are written for the photograph's size: ExecuTorch takes twice as long to lower symbolic sizes.
FIXED = ("executorch", "litert")
#: Families that the native engine does not compute: the export says so.
NOT_NATIVE = ("edifice",)
#: With more weights than an ONNX file can hold.
LARGEST = "mambavision_l3"
BUNDLED = [ref for ref, weights in assets.WEIGHTS.items() if weights.task == "segment"]
PROMPTABLE = [ref for ref, weights in assets.WEIGHTS.items() if weights.task == "prompt"]
PROMPTS: tuple[dict[str, Any], ...] = ({"points": [[80, 60]], "labels": [1]}, {"boxes": [20, 20, 120, 80]})
pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "street.jpg"
    Image.open(assets.FOLDER / "street.jpg").resize(SIZE[::-1]).save(path, quality=95)
    return path


def stirred(name: str, photo: Path) -> nn.Module:
    """A segmentation model with random weights, its classifier the one of 200 whose classes rounding decides least.

    What the classifier reads is computed once in float32 and once in float64: the draws then cost next to nothing.
    """
    torch.manual_seed(0)
    model: Any = foveal.create_model(name, "segment", num_classes=CLASSES).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.1)
    single = classifier_input(model, photo, torch.float32)
    double = classifier_input(model, photo, torch.float64)
    draws = []
    for _ in range(200):
        draws.append(drawn(single))
        if near_ties(single, double, *draws[-1]) <= 1:
            break
    weight, bias = min(draws, key=lambda draw: near_ties(single, double, *draw))
    with torch.no_grad():
        model.head.classifier.weight.copy_(weight)
        model.head.classifier.bias.copy_(bias)
    return model


def classifier_input(model: Any, photo: Path, dtype: torch.dtype) -> torch.Tensor:
    """What the classifier reads for the photograph, ``(1, C, h, w)``."""
    copied = copy.deepcopy(model)
    seen: list[torch.Tensor] = []
    copied.head.classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    Predictor(TorchRunner(copied, dtype=dtype), info_of(model), "torch")(photo)
    return seen[-1]


def drawn(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and bias of a classifier that gives the photograph all classes alike."""
    weight = torch.randn(CLASSES, features.shape[1], 1, 1)
    logits = nn.functional.conv2d(features, weight)
    spread, mean = torch.std_mean(logits, (0, 2, 3))
    return weight / spread[:, None, None, None], -mean / spread


@torch.no_grad()
def near_ties(single: torch.Tensor, double: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> int:
    """Number of pixels whose two best scores differ by less than four times the error of float32."""
    exact = nn.functional.conv2d(double, weight.double(), bias.double())
    error = (nn.functional.conv2d(single, weight, bias) - exact).abs().max()
    best, second = nn.functional.interpolate(exact, SIZE, mode="bilinear")[0].topk(2, 0).values
    return int((best - second < 4 * error).sum())


def masks(ref: str, model: nn.Module, photo: Path, folder: Path) -> Iterator[tuple[str, NDArray[Any]]]:
    """The masks of the optimised model, and of every format's file in its runtime; one is in memory at a time."""
    yield "optimised", Predictor(TorchRunner(foveal.optimize(model)), info_of(model), "torch")(photo).mask
    for name in FORMATS:
        if (name, ref) == ("onnx", LARGEST) or (name == "native" and ref.startswith(NOT_NATIVE)):
            with pytest.raises(foveal.ExportError, match="2 GiB" if name == "onnx" else "native"):
                foveal.export(model, name, output=folder)
            continue
        report = foveal.export(model, name, output=folder, input_size=SIZE if name in FIXED else None)
        yield name, foveal.load(report.path)(photo).mask


@pytest.mark.parametrize("ref", [*list_models(task="segment"), *BUNDLED])
def test_the_same_mask_everywhere(ref: str, photo: Path, tmp_path: Path) -> None:
    model: Any = foveal.load_model(ref) if ref in BUNDLED else stirred(ref, photo)
    expected = Predictor(TorchRunner(model), info_of(model), "torch")(photo).mask
    assert len(np.unique(expected)) > 1
    same = {name: float((mask == expected).mean()) for name, mask in masks(ref, model, photo, tmp_path)}
    assert {name: share for name, share in same.items() if share < 0.9999} == {}


@pytest.mark.parametrize("ref", PROMPTABLE)
def test_the_same_masks_of_a_click_and_a_box(ref: str, photo: Path, tmp_path: Path) -> None:
    def answers(predictor: Predictor) -> NDArray[Any]:
        embedding = predictor.encode(photo)
        return np.concatenate([np.asarray(embedding.prompt(**prompt).masks) for prompt in PROMPTS])

    model = foveal.load_model(ref)
    expected = answers(foveal.load(ref, runtime="torch"))
    assert 0 < expected.mean() < 1
    for name in FORMATS:
        found = answers(foveal.load(foveal.export(model, name, output=tmp_path).path))
        assert (found == expected).mean() >= 0.9999, name

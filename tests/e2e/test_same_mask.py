"""One photograph, one model, every runtime: the same classes at every pixel.

Weights are random where none are in the package, and the same for all runtimes. All files are written by the export and
opened by ``foveal.load``, so that preparation, network and argmax are those of users.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import foveal
from foveal import assets
from foveal.factory.create import list_models
from foveal.info import info_of
from foveal.prediction.predictor import Predictor
from foveal.prediction.torch_runner import TorchRunner

SIZE = (96, 160)  # of the photograph: small, since the largest networks run in seven runtimes
FORMATS = ("onnx", "openvino", "native", "executorch", "litert")
#: Formats whose files are written for the photograph's size: ExecuTorch takes twice as long to lower symbolic sizes.
FIXED = ("executorch", "litert")
#: Families that the native engine does not compute: the export says so.
NOT_NATIVE = ("efficientvit_m", "tinyvit", "edifice")
BUNDLED = [ref for ref, weights in assets.WEIGHTS.items() if weights.task == "segment"]
pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "street.jpg"
    Image.open(assets.FOLDER / "street.jpg").resize(SIZE[::-1]).save(path, quality=95)
    return path


def stirred(name: str, photo: Path) -> nn.Module:
    """A segmentation model with random weights, of 20 the one whose classes rounding decides least."""
    fewest, best = math.prod(SIZE), None
    for seed in range(20):
        model = drawn(name, photo, seed)
        undecided = near_ties(model, photo)
        if undecided < fewest:
            fewest, best = undecided, model
        if undecided <= 1:
            break
    assert best is not None
    return best


def near_ties(model: nn.Module, photo: Path) -> int:
    """Number of pixels whose two best scores differ by less than four times the error of float32."""
    exact = TorchRunner(copy.deepcopy(model), dtype=torch.float64)
    results = (Predictor(runner, info_of(model), "torch")(photo) for runner in (TorchRunner(model), exact))
    single, double = (torch.from_numpy(result.logits).double()[None] for result in results)
    best, second = nn.functional.interpolate(double, SIZE, mode="bilinear")[0].topk(2, 0).values
    return int((best - second < 4 * (single - double).abs().max()).sum())


def drawn(name: str, photo: Path, seed: int) -> nn.Module:
    """A segmentation model with random weights that gives the photograph all classes alike."""
    torch.manual_seed(seed)
    model: Any = foveal.create_model(name, "segment", num_classes=5).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.1)
        logits = Predictor(TorchRunner(model), info_of(model), "torch")(photo).logits
        mean, spread = (torch.from_numpy(values) for values in (logits.mean((1, 2)), logits.std((1, 2))))
        model.head.classifier.bias.sub_(mean)
        model.head.classifier.weight.div_(spread.reshape(-1, 1, 1, 1))
        model.head.classifier.bias.div_(spread)
    return model


def opened(ref: str, model: nn.Module, folder: Path) -> Iterator[tuple[str, Predictor]]:
    """The optimised model, and every format's file in its runtime."""
    yield "optimised", Predictor(TorchRunner(foveal.optimize(model)), info_of(model), "torch")
    for name in FORMATS:
        if name == "native" and ref.startswith(NOT_NATIVE):
            with pytest.raises(foveal.ExportError, match="native"):
                foveal.export(model, name, output=folder)
            continue
        report = foveal.export(model, name, output=folder, input_size=SIZE if name in FIXED else None)
        yield name, foveal.load(report.path)


@pytest.mark.parametrize("ref", [*list_models(task="segment"), *BUNDLED])
def test_the_same_mask_everywhere(ref: str, photo: Path, tmp_path: Path) -> None:
    model: Any = foveal.load_model(ref) if ref in BUNDLED else stirred(ref, photo)
    expected = Predictor(TorchRunner(model), info_of(model), "torch")(photo).mask
    assert len(np.unique(expected)) > 1
    same = {name: float((predictor(photo).mask == expected).mean()) for name, predictor in opened(ref, model, tmp_path)}
    assert {name: share for name, share in same.items() if share < 0.9999} == {}

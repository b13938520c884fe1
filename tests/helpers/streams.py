"""Small networks whose every part matters, their whole-image results, and streaming processes that are killed."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import foveal
from foveal.info import ModelInfo, attach, info_of
from foveal.models.efficientvit import Config, EfficientViT
from foveal.prediction.predictor import Predictor
from foveal.prediction.torch_runner import TorchRunner
from foveal.streaming import maps, run
from foveal.streaming.regions import Region
from foveal.tasks.segment import SegmentationHead, SegmentationModel
from helpers.narrow import NARROW

#: The kinds of blocks of EfficientViT-B, L and XL, two attention blocks in a row included.
B = dataclasses.replace(NARROW, depths=(1, 0, 1, 2), scales=(5, 3))
L = dataclasses.replace(B, blocks=("fused", "mb", "attention"), act=nn.GELU)
XL = Config(
    (8, 8, 8, 16, 16, 16),
    (0, 0, 1, 0, 1, 1),
    blocks=("fused", "fused", "fused", "attention", "attention"),
    expand_ratios=(2,) * 5,
    strided_expand_ratios=(2,) * 5,
    fewer_norm=(False, False, False, True, True),
    head_dim=8,
    scales=(3,),
)


def randomised(model: nn.Module, seed: int = 0) -> Any:
    """The model in evaluation mode with statistics of norms as after a training."""
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.2)
            assert module.running_var is not None
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def segmenter(config: Config = B, num_classes: int = 5, *, every_class: bool = True, **options: Any) -> Any:
    """A narrow EfficientViT that segments.

    With ``every_class`` its classifier is scaled so that every class occurs. This enlarges rounding errors, too,
    because the logits of a random classifier hardly depend on the image.
    """
    torch.manual_seed(1)
    backbone = EfficientViT(config, 3, **options)
    head = SegmentationHead(backbone.feature_info, num_classes, width=8, depth=1)
    model = SegmentationModel(backbone, head)
    attach(model, ModelInfo("efficientvit_b0", "segment", num_classes, output_stride=model.stride))
    randomised(model)
    if not every_class:
        return model
    with torch.inference_mode():
        logits = model(torch.from_numpy(stripes(96, 96)).float().permute(2, 0, 1)[None] / 64 - 2)
    with torch.no_grad():  # every class occurs
        spread = logits.std((0, 2, 3)).clone()
        head.classifier.weight /= spread[:, None, None, None]
        assert head.classifier.bias is not None
        head.classifier.bias.copy_((head.classifier.bias - logits.mean((0, 2, 3))) / spread)
    return model


def predictor_for(model: Any) -> Predictor:
    """A predictor of the torch runtime, optimised as foveal.load does it."""
    return Predictor(TorchRunner(foveal.optimize(model)), info_of(model), "torch on cpu")


class ArrayInput:
    """A network's input in memory."""

    has_gaps = False

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def read(self, region: Region) -> Tensor:
        return self.x[:, :, region.top : region.bottom, region.left : region.right]

    def valid(self, region: Region) -> NDArray[np.bool_]:
        return np.ones((region.height, region.width), bool)


def stripes(height: int, width: int) -> NDArray[np.uint8]:
    """An image with structure at every scale."""
    y, x = np.mgrid[:height, :width]
    rng = np.random.default_rng(3)
    noise = rng.integers(0, 60, (height, width, 3))
    pattern = np.stack([(x * 3 + y) % 190, (x // 9 + y // 5) * 37 % 190, (x * y // 64) % 190], axis=2)
    return (pattern + noise).astype(np.uint8)


def stream_until(call: int, model_file: str, source: str, out: str, tile: int) -> None:
    """Stream in this process, and kill it at the ``call``-th operation on the state folder (0: never)."""
    run.SAVE_SECONDS = 0
    count = 0

    def counted(function: Any) -> Any:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == call:
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*args, **kwargs)
            count += 1
            if count == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return wrapper

    for owner, name in (
        (maps.DiskMap, "write"),
        (maps.StateFolder, "save"),
        (maps.StateFolder, "drop"),
        (maps, "remove_state"),
        (os, "replace"),
        (os, "fsync"),
    ):
        setattr(owner, name, counted(getattr(owner, name)))
    torch.set_num_threads(1)
    model = segmenter()
    model.load_state_dict(torch.load(model_file, weights_only=True))
    foveal.stream(predictor_for(model), Path(source), Path(out), tile=tile, resume=True)

"""Small networks whose every part matters, their whole-image results, and streaming processes that are killed."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Sequence
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
from foveal.streaming.native import Group, group_steps
from foveal.streaming.passes import coarsest_stride, plan
from foveal.streaming.regions import Region
from foveal.streaming.torch_executor import TorchExecutor
from foveal.streaming.trace import derive
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


def compare(
    model: nn.Module, x: Tensor, sides: Sequence[int | None], native: bool = False, least: int = 0, **options: Any
) -> int:
    """Check that streaming gives the model's outputs for every side of the pieces; return the number of passes.

    Args:
        model: the model.
        x: its input.
        sides: of the pieces, in multiples of the coarsest stride; ``None``: one piece.
        native: let the native engine compute what it can.
        least: number of convolutions that it must be able to compute.
        options: of the model's call.
    """
    with torch.inference_mode():
        outputs = model(x, **options)
    expected = [each.numpy() for each in (outputs if isinstance(outputs, list | tuple) else [outputs])]
    program = derive(model, x.shape[2], x.shape[3], channels=x.shape[1], **options)
    passes = 0
    for side in sides:
        divided = plan(program, side=None if side is None else side * coarsest_stride(program))
        passes = len(divided.passes)
        if native:
            items = [item for part in divided.passes for item in group_steps(divided, part, 1)]
            steps = [step for item in items if isinstance(item, Group) for step in item.steps]
            assert sum(bool(step.arithmetic) for step in steps) >= least
        executor = TorchExecutor(divided, native=True) if native else None
        found = run.run(divided, ArrayInput(x), executor=executor).arrays()
        for value, truth in zip(found, expected, strict=True):
            truth = truth[0] if truth.ndim == 4 else truth
            assert value.shape == truth.shape
            assert np.abs(value - truth).max() <= 1e-5 * np.abs(truth).max()
            if options:
                assert (value.argmax(0) == truth.argmax(0)).mean() >= 0.9999
    return passes


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

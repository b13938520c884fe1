"""A narrow EfficientViT with few blocks, for tests of what happens around a network: tracing it takes seconds."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from foveal.info import ModelInfo, attach
from foveal.models.efficientvit import CONFIGS, Config, EfficientViT, register_variant, variant
from foveal.models.registry import FAMILIES
from foveal.tasks.classify import ClassificationModel
from foveal.tasks.segment import SegmentationHead, SegmentationModel

NARROW = Config(
    (8, 8, 16, 16),
    (0, 0, 0, 1),
    blocks=("mb", "mb", "attention"),
    expand_ratios=(2, 2, 2),
    strided_expand_ratios=(2, 2, 2),
    fewer_norm=(False, False, True),
    head_dim=8,
    classifier_dim=(16, 16),
)

CONVOLUTIONS = dataclasses.replace(NARROW, depths=(0, 0, 0, 0))  #: the same without attention


def narrow(task: str = "classify", num_classes: int = 3, attention: bool = True) -> Any:
    """The model in evaluation mode, described as an efficientvit_b0, so that no variant is registered.

    Without ``attention``, tracing takes half of the time.
    """
    backbone = EfficientViT(NARROW if attention else CONVOLUTIONS, 3)
    if task == "segment":
        model: Any = SegmentationModel(backbone, SegmentationHead(backbone.feature_info, num_classes, width=8, depth=1))
    else:
        classifier = variant("narrow", NARROW).classifier
        assert classifier is not None
        model = ClassificationModel(backbone, classifier(backbone.feature_info[-1].channels, num_classes))
    attach(model, ModelInfo("efficientvit_b0", task, num_classes, output_stride=getattr(model, "stride", 1)))
    return model.eval()


@contextmanager
def registered(name: str = "efficientvit_narrow", attention: bool = True) -> Iterator[str]:
    """The model under a name of its own, for training, loading and exporting in this process.

    It has a small segmentation head; as a promptable model it takes images of 256 pixels.
    """
    register_variant(name, NARROW if attention else CONVOLUTIONS)
    variants: Any = FAMILIES["efficientvit"].variants
    variants[name] = dataclasses.replace(
        variants[name],
        segment_heads={"cityscapes": {"width": 8, "depth": 1, "num_classes": 19}},
        prompt={"depth": 0, "expand_ratio": 1, "norm_eps": 1e-5},
    )
    yield name
    del CONFIGS[name], variants[name]


class Plain(nn.Module):
    """A classifier of two layers, for tests of what happens to any network: tracing it takes a second."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.classifier = nn.Conv2d(3, 16, 3, 2, 1), nn.Linear(16, 3)
        attach(self, ModelInfo("plain", "classify", 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.conv(x).relu().mean((2, 3)))

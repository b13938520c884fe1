"""A narrow EfficientViT with few blocks, for tests of what happens around a network: tracing it takes seconds."""

from __future__ import annotations

from typing import Any

from foveal.info import ModelInfo, attach
from foveal.models.efficientvit import Config, EfficientViT, variant
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


def narrow(task: str = "classify", num_classes: int = 3) -> Any:
    """The model in evaluation mode, described as an efficientvit_b0, so that no variant is registered."""
    backbone = EfficientViT(NARROW, 3)
    if task == "segment":
        model: Any = SegmentationModel(backbone, SegmentationHead(backbone.feature_info, num_classes, width=8, depth=1))
    else:
        classifier = variant("narrow", NARROW).classifier
        assert classifier is not None
        model = ClassificationModel(backbone, classifier(backbone.feature_info[-1].channels, num_classes))
    attach(model, ModelInfo("efficientvit_b0", task, num_classes, output_stride=getattr(model, "stride", 1)))
    return model.eval()

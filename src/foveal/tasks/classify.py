"""Image classification: a backbone and the classifier that its family published for it."""

from __future__ import annotations

from torch import Tensor, nn

from ..errors import ConfigError
from ..models.registry import Backbone
from ..task import TASKS
from .builder import Builder, Request


class ClassificationModel(nn.Module):
    """Backbone and head: ``(B, in_chans, H, W) -> (B, num_classes)`` logits, from the coarsest feature map.

    With ``num_classes=0`` the head returns pooled features, ``(B, head.num_features)``.

    Raises:
        InputError: H or W is below the backbone's ``min_size``.
    """

    def __init__(self, backbone: Backbone, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x)[-1])


def _count_classes(request: Request) -> int:
    if request.num_classes is None:
        return TASKS["classify"].published_classes
    if request.num_classes < 0:
        raise ConfigError(f"num_classes={request.num_classes}: give 0 (pooled features) or more")
    return request.num_classes


def _build(backbone: Backbone, request: Request) -> ClassificationModel:
    classifier = request.variant.classifier
    if classifier is None:
        raise ConfigError(f"{request.name} has no classifier; use features_only=True or task='segment'")
    head = classifier(backbone.feature_info[-1].channels, request.num_classes, **request.options)
    return ClassificationModel(backbone, head)


BUILDER = Builder(
    _build,
    _count_classes,
    family_options=lambda family: family.classifier_options,
    supports=lambda variant: variant.classifier is not None,
)

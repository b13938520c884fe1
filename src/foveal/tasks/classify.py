"""Image classification: a backbone and the classifier that its family published for it."""

from __future__ import annotations

from torch import Tensor, nn

from ..models.registry import Backbone


class ClassificationModel(nn.Module):
    """Backbone and head: ``(B, in_chans, H, W) -> (B, num_classes)`` logits, from the coarsest map.

    With ``num_classes=0`` the head returns pooled features, ``(B, head.num_features)``.

    Raises:
        InputError: H or W is below the backbone's ``min_size``.
    """

    def __init__(self, backbone: Backbone, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x)[-1])

"""Classifiers of a feature map by its mean; their last layer is named ``classifier``."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from .conv import ConvNormAct


class NormClassifier(nn.Module):
    """Average pooling, layer norm, classifier: ``(B, C, h, w) -> (B, num_classes)``.

    With ``num_classes=0`` or ``pre_logits=True`` it returns the input of the classifier, ``(B, C)``.
    """

    def __init__(self, in_chans: int, num_classes: int = 1000) -> None:
        super().__init__()
        self.num_features = in_chans
        self.norm = nn.LayerNorm(in_chans)
        self.classifier = nn.Linear(in_chans, num_classes) if num_classes else nn.Identity()

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.norm(x.mean((2, 3)))
        return x if pre_logits else self.classifier(x)


class WideClassifier(nn.Module):
    """1x1 convolution, average pooling, linear layer with layer norm, classifier: ``(B, C, h, w) -> (B, num_classes)``.

    With ``num_classes=0`` or ``pre_logits=True`` it returns the input of the classifier, ``(B, dims[1])``.
    """

    def __init__(
        self,
        in_chans: int,
        num_classes: int = 1000,
        *,
        dims: tuple[int, int],
        act: Callable[[], nn.Module],
        norm_eps: float,
    ) -> None:
        super().__init__()
        self.num_features = dims[1]
        self.conv = ConvNormAct(in_chans, dims[0], 1, act=act, norm_eps=norm_eps)
        self.hidden = nn.Linear(dims[0], dims[1], bias=False)
        self.norm = nn.LayerNorm(dims[1], eps=norm_eps)
        self.act = act()
        self.classifier = nn.Linear(dims[1], num_classes) if num_classes else nn.Identity()

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = F.adaptive_avg_pool2d(self.conv(x), 1).flatten(1)
        x = self.act(self.norm(self.hidden(x)))
        return x if pre_logits else self.classifier(x)

"""A linear layer with a batch norm in front of it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class NormLinear(nn.Linear):
    """Batch norm, then a linear layer: ``(B, in_features) -> (B, out_features)``, as in LeViT (arXiv 2104.01136)."""

    def __init__(self, in_features: int, out_features: int, *, norm_eps: float = 1e-5) -> None:
        super().__init__(in_features, out_features)
        self.norm: nn.Module = nn.BatchNorm1d(in_features, eps=norm_eps)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(self.norm(input), self.weight, self.bias)

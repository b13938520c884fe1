"""Low-rank additions to weights (LoRA, arXiv 2106.09685): only two thin matrices of a layer are trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


def add_low_rank(weight: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """Add ``scale * up @ down`` to a weight, in the shape of the weight.

    The product is computed in the type of the weight also under autocast, so that training and merging agree.

    Args:
        weight: ``(out, in)`` of a linear layer, or ``(out, in / groups, kh, kw)`` of a convolution, whose filters are
            the rows of a matrix.
        down: ``(rank, in / groups * kh * kw)``.
        up: ``(out, rank)``.
        scale: factor of the product.
    """
    with torch.autocast(weight.device.type, enabled=False):
        return weight + (scale * (up @ down)).view(weight.shape)


class LowRank(nn.Module):
    """The parametrization of one weight; at the start it changes nothing, because ``up`` is zero.

    Args:
        weight: the weight, see :func:`add_low_rank`.
        rank: of the addition.
        scale: factor of the addition.
    """

    def __init__(self, weight: Tensor, rank: int, scale: float) -> None:
        super().__init__()
        out, inputs = weight.flatten(1).shape
        self.scale = scale
        self.down = nn.Parameter(torch.randn(rank, inputs, dtype=torch.float32).to(weight) / inputs**0.5)
        self.up = nn.Parameter(torch.zeros(out, rank).to(weight))

    def forward(self, weight: Tensor) -> Tensor:
        return add_low_rank(weight, self.down, self.up, self.scale)


def adapt(layer: nn.Module, rank: int, scale: float) -> LowRank:
    """Freeze the weight of a layer and train a low-rank addition to it instead; the layer computes with the sum."""
    weight = layer.get_parameter("weight").requires_grad_(False)
    addition = LowRank(weight, rank, scale)
    # unsafe: do not run the layer's addition once more to check its shape
    parametrize.register_parametrization(layer, "weight", addition, unsafe=True)
    return addition

"""Residual branches that start at zero, so that an untrained network is as deep as its strided blocks alone."""

from __future__ import annotations

from torch import nn

from .conv import ConvNormAct, DepthwiseSeparableConv, FusedInvertedResidual, InvertedResidual, ResidualConv
from .linear_attention import MultiScaleLinearAttention


def zero_init(conv: ConvNormAct) -> ConvNormAct:
    """Zero the norm's weight, so that a residual branch that ends in this convolution starts at 0."""
    assert isinstance(conv.norm, nn.BatchNorm2d)
    nn.init.zeros_(conv.norm.weight)
    return conv


def zero_init_last(module: nn.Module) -> int:
    """Zero the weight of the last norm of every residual branch in ``module`` (arXiv 1706.02677, section 5.1).

    Returns:
        Number of norms whose weight is zero afterwards: 0 if no branch ends in a norm.
    """
    for part in module.modules():
        last = _last(part)
        if last is not None and isinstance(last.norm, nn.BatchNorm2d):
            zero_init(last)
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    return sum(not norm.weight.any() for norm in norms)


def _last(part: nn.Module) -> ConvNormAct | None:
    """The last convolution of a residual branch; ``None`` if ``part`` is no such branch."""
    if isinstance(part, MultiScaleLinearAttention):
        return part.project
    if isinstance(part, DepthwiseSeparableConv | FusedInvertedResidual | InvertedResidual) and part.residual:
        return part.project
    if isinstance(part, ResidualConv) and part.residual:
        return part.conv2
    return None

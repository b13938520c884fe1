"""Dilated convolutions in place of strides, for denser feature maps with the same weights (arXiv 1412.7062)."""

from __future__ import annotations

from torch import nn


def dilate(stage: nn.Module, dilation: int = 1) -> int:
    """Set the strides of a stage's convolutions to 1 and dilate the convolutions that follow them instead.

    No tensor changes. A network of convolutions with symmetric padding keeps its outputs: at every position that the
    strided network had, the dilated network has the same value.

    Args:
        stage: its convolutions are in the order in which they run, with square kernels of odd sides.
        dilation: product of the strides that were removed before this stage.

    Returns:
        The product of the strides that are removed up to the end of this stage.
    """
    for conv in stage.modules():
        if not isinstance(conv, nn.Conv2d):
            continue
        stride, side = conv.stride[0], conv.kernel_size[0]
        conv.stride = (1, 1)
        conv.dilation = (dilation, dilation)
        conv.padding = (dilation * (side // 2), dilation * (side // 2))
        dilation *= stride
    return dilation

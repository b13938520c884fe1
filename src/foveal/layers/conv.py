"""Convolution blocks that the families share.

Sources: depthwise separable convolution, MobileNet (arXiv 1704.04861); inverted residual, MobileNetV2 (arXiv
1801.04381); fused inverted residual, EfficientNetV2 (arXiv 2104.00298); squeeze and excitation (arXiv 1709.01507). The
choice of which convolutions have a bias or a norm follows EfficientViT (arXiv 2205.14756).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError, nearest
from .drop_path import DropPath
from .leaf import leaf
from .resample import ceil_div

Padding = Literal["symmetric", "same"]
Activation = Callable[[], nn.Module] | None  #: a class, for example ``nn.ReLU``, or a partial of one


def make_divisible(width: float, divisor: int = 8) -> int:
    """Round a number of channels to the nearest multiple of ``divisor``, at least ``divisor`` and 90 % of ``width``.

    Source: the authors' code of MobileNetV2 (arXiv 1801.04381).
    """
    rounded = max(divisor, int(width + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * width else rounded


class ConvNormAct(nn.Module):
    """Convolution, batch normalisation, activation: ``(B, in_chans, H, W) -> (B, out_chans, ceil(H/s), ceil(W/s))``.

    Args:
        in_chans: channels of the input.
        out_chans: channels of the output.
        kernel_size: side of the kernel, odd.
        stride: stride of the convolution in both directions.
        groups: groups of the convolution.
        bias: whether the convolution has a bias. Default: only if no norm follows.
        norm: whether a batch norm follows.
        norm_eps: epsilon of that norm.
        act: activation class (or a partial of one), ``None`` for none.
        padding: "symmetric" pads with ``kernel_size // 2`` zeros on every side. "same" is TensorFlow's: as few zeros as
            are needed, with an odd one at the right and bottom. The two differ only for strides above 1.
    """

    def __init__(
        self,
        in_chans: int,
        out_chans: int,
        kernel_size: int = 3,
        stride: int = 1,
        *,
        groups: int = 1,
        bias: bool | None = None,
        norm: bool = True,
        norm_eps: float = 1e-5,
        act: Activation = None,
        padding: Padding = "symmetric",
    ) -> None:
        super().__init__()
        bias = (not norm) if bias is None else bias
        self.conv = nn.Conv2d(in_chans, out_chans, kernel_size, stride, kernel_size // 2, groups=groups, bias=bias)
        self.norm = nn.BatchNorm2d(out_chans, eps=norm_eps) if norm else nn.Identity()
        self.act = act() if act is not None else nn.Identity()
        self.pad(padding)

    def pad(self, padding: Padding) -> None:
        """Change the padding."""
        side, step, dilation = self.conv.kernel_size[0], self.conv.stride[0], self.conv.dilation[0]
        self.same = padding == "same" and step > 1
        self.conv.padding = (0, 0) if self.same else (dilation * (side // 2), dilation * (side // 2))

    def forward(self, x: Tensor) -> Tensor:
        if self.same:
            x = pad_same(x, self.conv.kernel_size[0], self.conv.stride[0])
        return self.act(self.norm(self.conv(x)))


@leaf
def pad_same(x: Tensor, kernel_size: int, stride: int) -> Tensor:
    """Zero-pad ``(B, C, H, W)`` as TensorFlow's "SAME" does, so that the output has ``ceil(side / stride)`` pixels.

    An odd pixel of padding goes to the right and bottom.
    """
    pads: list[int] = []
    for length in (x.shape[-1], x.shape[-2]):
        total = (ceil_div(length, stride) - 1) * stride + kernel_size - length
        if kernel_size < stride:  # negative only in this case; a maximum elsewhere would be exported for nothing
            total = max(total, 0)
        # The two sides add up to `total`, so symbolic sizes simplify. With two independent roundings, the expressions
        # would grow with every layer.
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads)


def set_convention(
    module: nn.Module,
    *,
    norm_eps: float | None = None,
    norm_momentum: float | None = None,
    padding: Padding | None = None,
) -> None:
    """Set the conventions in which ports of a network differ, for every :class:`ConvNormAct` inside ``module``.

    No tensor changes, so this can be called on a built model, once the origin of the weights is known. ``None`` leaves
    a setting unchanged.

    Args:
        module: the model, or a part of it.
        norm_eps: epsilon of the batch norms.
        norm_momentum: weight of the newest batch in their running statistics.
        padding: padding of the convolutions, see :class:`ConvNormAct`.

    Raises:
        ConfigError: an unknown padding, a negative epsilon, or a momentum outside 0 to 1.
    """
    if padding not in (None, "symmetric", "same"):
        raise ConfigError(f"unknown padding {padding!r}{nearest(padding, ('symmetric', 'same'))}")
    if norm_eps is not None and norm_eps < 0:
        raise ConfigError(f"norm_eps={norm_eps} is out of range: give 0 or more")
    if norm_momentum is not None and not 0 <= norm_momentum <= 1:
        raise ConfigError(f"norm_momentum={norm_momentum} is out of range: give 0 to 1")
    for part in module.modules():
        if isinstance(part, ConvNormAct):
            if padding is not None:
                part.pad(padding)
            if isinstance(part.norm, nn.BatchNorm2d):
                part.norm.eps = part.norm.eps if norm_eps is None else norm_eps
                part.norm.momentum = part.norm.momentum if norm_momentum is None else norm_momentum


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate computed from the means of all channels; keeps ``(B, C, H, W)`` (arXiv 1709.01507).

    Args:
        channels: channels of the input.
        reduced: channels between the two 1x1 convolutions, which have biases.
        act: activation between them.
        gate: activation after them: a sigmoid, or the hard sigmoid of MobileNetV3.
    """

    def __init__(
        self,
        channels: int,
        reduced: int,
        act: Callable[[], nn.Module] = nn.ReLU,
        gate: Callable[[], nn.Module] = nn.Sigmoid,
    ) -> None:
        super().__init__()
        self.reduce, self.act = nn.Conv2d(channels, reduced, 1), act()
        self.expand, self.gate = nn.Conv2d(reduced, channels, 1), gate()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.expand(self.act(self.reduce(x.mean((2, 3), keepdim=True)))))


class DepthwiseSeparableConv(nn.Module):
    """Depthwise convolution with activation, then 1x1 convolution without, plus the input if the shapes are equal.

    ``(B, in_chans, H, W) -> (B, out_chans, ceil(H/stride), ceil(W/stride))``. This is an :class:`InvertedResidual`
    without expansion, and has the same arguments.
    """

    def __init__(
        self,
        in_chans: int,
        out_chans: int,
        stride: int = 1,
        *,
        kernel_size: int = 3,
        act: Activation = nn.ReLU6,
        norm_eps: float = 1e-5,
        squeeze: Callable[[int], nn.Module] | None = None,
        residual: bool = True,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.residual = residual and stride == 1 and in_chans == out_chans
        self.depthwise = ConvNormAct(
            in_chans, in_chans, kernel_size, stride, groups=in_chans, norm_eps=norm_eps, act=act
        )
        self.squeeze = squeeze(in_chans) if squeeze is not None else nn.Identity()
        self.project = ConvNormAct(in_chans, out_chans, 1, norm_eps=norm_eps)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.squeeze(self.depthwise(x)))
        return x + self.drop_path(y) if self.residual else y


class InvertedResidual(nn.Module):
    """MBConv: 1x1 expansion, depthwise convolution, 1x1 projection, plus the input if the shapes are equal.

    ``(B, in_chans, H, W) -> (B, out_chans, ceil(H/stride), ceil(W/stride))``.

    Args:
        in_chans: channels of the input.
        out_chans: channels of the output.
        stride: stride of the depthwise convolution.
        expand_ratio: hidden channels over ``in_chans``.
        kernel_size: side of the depthwise kernel.
        act: activation of the first two convolutions.
        norm_eps: epsilon of the batch norms.
        fewer_norm: EfficientViT's cheaper form: the first two convolutions have a bias and no norm.
        norm: ``False``: no convolution has a norm (for networks whose outputs are pixels).
        squeeze: function that builds the module after the depthwise convolution from its number of channels, for
            example a :class:`SqueezeExcite`; ``None`` for no module.
        residual: whether to add the input if stride is 1 and ``in_chans`` equals ``out_chans``.
        drop_path: rate of :class:`DropPath` before that addition.
    """

    def __init__(
        self,
        in_chans: int,
        out_chans: int,
        stride: int = 1,
        *,
        expand_ratio: float = 4,
        kernel_size: int = 3,
        act: Activation = nn.ReLU6,
        norm_eps: float = 1e-5,
        fewer_norm: bool = False,
        norm: bool = True,
        squeeze: Callable[[int], nn.Module] | None = None,
        residual: bool = True,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        hidden = round(in_chans * expand_ratio)
        self.residual = residual and stride == 1 and in_chans == out_chans
        inner = partial(ConvNormAct, norm=norm and not fewer_norm, norm_eps=norm_eps, act=act)
        self.expand = inner(in_chans, hidden, 1)
        self.depthwise = inner(hidden, hidden, kernel_size, stride, groups=hidden)
        self.squeeze = squeeze(hidden) if squeeze is not None else nn.Identity()
        self.project = ConvNormAct(hidden, out_chans, 1, norm=norm, norm_eps=norm_eps)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.squeeze(self.depthwise(self.expand(x))))
        return x + self.drop_path(y) if self.residual else y


class FusedInvertedResidual(nn.Module):
    """Fused MBConv: dense 3x3 expansion, 1x1 projection, plus the input if the shapes are equal.

    ``(B, in_chans, H, W) -> (B, out_chans, ceil(H/stride), ceil(W/stride))``. Arguments as in
    :class:`InvertedResidual`.
    """

    def __init__(
        self,
        in_chans: int,
        out_chans: int,
        stride: int = 1,
        *,
        expand_ratio: float = 4,
        kernel_size: int = 3,
        act: Activation = nn.ReLU6,
        norm_eps: float = 1e-5,
        fewer_norm: bool = False,
        residual: bool = True,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        hidden = round(in_chans * expand_ratio)
        self.residual = residual and stride == 1 and in_chans == out_chans
        self.expand = ConvNormAct(
            in_chans, hidden, kernel_size, stride, norm=not fewer_norm, norm_eps=norm_eps, act=act
        )
        self.project = ConvNormAct(hidden, out_chans, 1, norm_eps=norm_eps)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.expand(x))
        return x + self.drop_path(y) if self.residual else y


class ResidualConv(nn.Module):
    """Two dense 3x3 convolutions plus the input: stem block of EfficientViT-L, convolutional block of MambaVision.

    ``(B, in_chans, H, W) -> (B, out_chans, ceil(H/stride), ceil(W/stride))``. Only the first convolution has an
    activation. Arguments as in :class:`InvertedResidual`; ``bias`` as in :class:`ConvNormAct`.
    """

    def __init__(
        self,
        in_chans: int,
        out_chans: int,
        stride: int = 1,
        *,
        expand_ratio: float = 1,
        act: Activation = nn.ReLU6,
        norm_eps: float = 1e-5,
        fewer_norm: bool = False,
        norm: bool = True,
        residual: bool = True,
        bias: bool | None = None,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        hidden = round(in_chans * expand_ratio)
        self.residual = residual and stride == 1 and in_chans == out_chans
        self.conv1 = ConvNormAct(
            in_chans, hidden, 3, stride, bias=bias, norm=norm and not fewer_norm, norm_eps=norm_eps, act=act
        )
        self.conv2 = ConvNormAct(hidden, out_chans, 3, bias=bias, norm=norm, norm_eps=norm_eps)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = self.drop_path(self.conv2(self.conv1(x)))
        return x + y if self.residual else y


@leaf
def widened(x: Tensor) -> Tensor:
    """Convert a tensor of 16 bits to float32; return any other unchanged."""
    return x.float() if x.dtype.itemsize == 2 else x


class LayerNorm2d(nn.Module):
    """Layer norm over the channels of ``(B, C, H, W)`` with biased variance; the shape is kept.

    16-bit inputs are computed in float32, because the squares can overflow float16 (in EfficientViT-SAM they do).
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = widened(x)
        y = y - y.mean(1, keepdim=True)
        y = y / torch.sqrt((y * y).mean(1, keepdim=True) + self.eps)
        y = y * self.weight[:, None, None].to(y.dtype) + self.bias[:, None, None].to(y.dtype)
        return y.to(x.dtype)

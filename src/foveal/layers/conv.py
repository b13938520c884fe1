"""Convolution blocks that the families share.

Sources: depthwise separable convolution, MobileNet (arXiv 1704.04861); inverted residual, MobileNetV2 (arXiv
1801.04381); fused inverted residual, EfficientNetV2 (arXiv 2104.00298); which convolution carries a bias or a norm
follows EfficientViT (arXiv 2205.14756).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

Activation = Callable[[], nn.Module] | None  #: a class such as ``nn.ReLU``, or a partial of one


class ConvNormAct(nn.Module):
    """Convolution, batch normalisation, activation: ``(B, in_chans, H, W) -> (B, out_chans, ceil(H/s), ceil(W/s))``.

    Args:
        in_chans: channels of the input.
        out_chans: channels of the output.
        kernel_size: side of the kernel, odd; the padding is ``kernel_size // 2``.
        stride: step of the convolution in both directions.
        groups: groups of the convolution.
        bias: whether the convolution has a bias. Default: only where no norm follows.
        norm: whether a batch norm follows.
        norm_eps: epsilon of that norm.
        act: activation class (or a partial of one), ``None`` for none.
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
    ) -> None:
        super().__init__()
        bias = (not norm) if bias is None else bias
        self.conv = nn.Conv2d(in_chans, out_chans, kernel_size, stride, kernel_size // 2, groups=groups, bias=bias)
        self.norm = nn.BatchNorm2d(out_chans, eps=norm_eps) if norm else nn.Identity()
        self.act = act() if act is not None else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))


class DepthwiseSeparableConv(nn.Module):
    """Depthwise 3x3 with activation, then pointwise 1x1 without, plus the input where the shapes allow it.

    ``(B, in_chans, H, W) -> (B, out_chans, ceil(H/stride), ceil(W/stride))``.
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
        residual: bool = True,
    ) -> None:
        super().__init__()
        self.residual = residual and stride == 1 and in_chans == out_chans
        self.depthwise = ConvNormAct(
            in_chans, in_chans, kernel_size, stride, groups=in_chans, norm_eps=norm_eps, act=act
        )
        self.project = ConvNormAct(in_chans, out_chans, 1, norm_eps=norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(x))
        return x + y if self.residual else y


class InvertedResidual(nn.Module):
    """MBConv: expand 1x1, depthwise, project 1x1, plus the input where the shapes allow it.

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
        norm: ``False``: no convolution has one (for networks whose outputs are pixels).
        residual: whether to add the input when stride is 1 and the widths agree.
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
        residual: bool = True,
    ) -> None:
        super().__init__()
        hidden = round(in_chans * expand_ratio)
        self.residual = residual and stride == 1 and in_chans == out_chans
        inner = partial(ConvNormAct, norm=norm and not fewer_norm, norm_eps=norm_eps, act=act)
        self.expand = inner(in_chans, hidden, 1)
        self.depthwise = inner(hidden, hidden, kernel_size, stride, groups=hidden)
        self.project = ConvNormAct(hidden, out_chans, 1, norm=norm, norm_eps=norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


class FusedInvertedResidual(nn.Module):
    """Fused MBConv: one dense 3x3 expands, 1x1 projects, plus the input where the shapes allow it.

    ``(B, in_chans, H, W) -> (B, out_chans, ceil(H/stride), ceil(W/stride))``; arguments as in
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
    ) -> None:
        super().__init__()
        hidden = round(in_chans * expand_ratio)
        self.residual = residual and stride == 1 and in_chans == out_chans
        self.expand = ConvNormAct(
            in_chans, hidden, kernel_size, stride, norm=not fewer_norm, norm_eps=norm_eps, act=act
        )
        self.project = ConvNormAct(hidden, out_chans, 1, norm_eps=norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.expand(x))
        return x + y if self.residual else y


class ResidualConv(nn.Module):
    """Two dense 3x3 convolutions plus the input: the stem block of EfficientViT-L (``ResBlock`` there).

    ``(B, in_chans, H, W) -> (B, out_chans, ceil(H/stride), ceil(W/stride))``; only the first is activated.
    ``norm=False``: neither has a norm.
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
    ) -> None:
        super().__init__()
        hidden = round(in_chans * expand_ratio)
        self.residual = residual and stride == 1 and in_chans == out_chans
        self.conv1 = ConvNormAct(in_chans, hidden, 3, stride, norm=norm and not fewer_norm, norm_eps=norm_eps, act=act)
        self.conv2 = ConvNormAct(hidden, out_chans, 3, norm=norm, norm_eps=norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.conv1(x))
        return x + y if self.residual else y


class LayerNorm2d(nn.Module):
    """Layer norm over the channels of ``(B, C, H, W)``, biased variance; the shape is kept.

    Computed in float32 for 16-bit inputs: the squares overflow float16 (EfficientViT-SAM does in practice).
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        y = y - y.mean(1, keepdim=True)
        y = y / torch.sqrt((y * y).mean(1, keepdim=True) + self.eps)
        y = y * self.weight[:, None, None].to(y.dtype) + self.bias[:, None, None].to(y.dtype)
        return y.to(x.dtype)

"""Count the parameters and multiply-accumulates (MACs) of models, on the meta device, so that no memory is needed.

:func:`count` counts a whole model. The other functions give the costs of the blocks of :mod:`foveal.layers.conv` in
closed form; both agree.
"""

from __future__ import annotations

import copy
import math
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..layers.resample import BicubicUpsample


class Costs(NamedTuple):
    """Costs of a model or block for one image, or one sequence."""

    params: int
    macs: int  #: multiply-accumulates of convolutions and matrix products


def _sum(shape: tuple[int, ...], *args: Any, **kwargs: Any) -> int:
    """FLOPs of a sum: linear attention sums its keys, which the authors' code writes as a product with ones."""
    return 2 * math.prod(shape)


def count(model: nn.Module, in_chans: int, size: tuple[int, int]) -> Costs:
    """Count the parameters of a model, and its MACs for one image.

    MACs are those of convolutions and matrix products, as the papers print them. Norms, activations, pooling and
    resizing count nothing, also where resizing is implemented as a convolution.

    Args:
        model: a model built on the meta device (``with torch.device("meta")``), in evaluation mode.
        in_chans: channels of the image.
        size: (H, W) of the image in pixels.
    """
    return _count(model, torch.empty(1, in_chans, *size, device="meta"))


def count_tokens(model: nn.Module, length: int) -> Costs:
    """Count the parameters of a language model, and its MACs for one sequence of ``length`` tokens."""
    return _count(model, torch.zeros(1, length, dtype=torch.long, device="meta"))


def _count(model: nn.Module, x: torch.Tensor) -> Costs:
    model = copy.deepcopy(model).requires_grad_(False)  # the counter fails on parameters that modules receive as inputs
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.sum: _sum})
    with counter, torch.inference_mode():
        model(x)
    counts = counter.get_flop_counts()
    resizing_modules = (name for name, module in model.named_modules() if isinstance(module, BicubicUpsample))
    resizing = sum(sum(counts.get(f"{type(model).__name__}.{name}", {}).values()) for name in resizing_modules)
    return Costs(sum(p.numel() for p in model.parameters()), (counter.get_total_flops() - resizing) // 2)


def convolution(
    in_chans: int,
    out_chans: int,
    size: tuple[int, int],
    *,
    kernel_size: int = 3,
    stride: int = 1,
    groups: int = 1,
    bias: bool = False,
    norm: bool = True,
) -> Costs:
    """Costs of :class:`~foveal.layers.conv.ConvNormAct` on feature maps of ``size`` (H, W).

    It has ``k^2 in out / groups`` weights, and each is used at every one of the ``ceil(H/s) ceil(W/s)`` outputs.
    """
    weights = kernel_size**2 * in_chans // groups * out_chans
    params = weights + out_chans * (int(bias) + 2 * int(norm))
    return Costs(params, weights * math.prod(_strided(size, stride)))


def squeeze_excite(channels: int, reduced: int) -> Costs:
    """Costs of :class:`~foveal.layers.conv.SqueezeExcite`, which do not depend on the size of the feature map."""
    return Costs(2 * channels * reduced + channels + reduced, 2 * channels * reduced)


def depthwise_separable(
    in_chans: int,
    out_chans: int,
    size: tuple[int, int],
    *,
    kernel_size: int = 3,
    stride: int = 1,
    reduced: int = 0,
) -> Costs:
    """Costs of :class:`~foveal.layers.conv.DepthwiseSeparableConv`: ``(k^2 in + in out) H' W'`` MACs.

    Args:
        in_chans: channels of the input.
        out_chans: channels of the output.
        size: (H, W) of the input.
        kernel_size: kernel size of the depthwise convolution.
        stride: stride of the depthwise convolution.
        reduced: channels inside its squeeze-and-excitation block, 0 for none.
    """
    depthwise = convolution(in_chans, in_chans, size, kernel_size=kernel_size, stride=stride, groups=in_chans)
    project = convolution(in_chans, out_chans, _strided(size, stride), kernel_size=1)
    return _total(depthwise, project, *([squeeze_excite(in_chans, reduced)] if reduced else []))


def inverted_residual(
    in_chans: int,
    out_chans: int,
    size: tuple[int, int],
    *,
    expand_ratio: float = 4,
    kernel_size: int = 3,
    stride: int = 1,
    reduced: int = 0,
    fewer_norm: bool = False,
) -> Costs:
    """Costs of :class:`~foveal.layers.conv.InvertedResidual`.

    ``in hidden H W + (k^2 hidden + hidden out) H' W'`` MACs. The arguments are those of :func:`depthwise_separable`
    and of the block.
    """
    hidden = round(in_chans * expand_ratio)
    inner = {"bias": fewer_norm, "norm": not fewer_norm}
    expand = convolution(in_chans, hidden, size, kernel_size=1, **inner)
    depthwise = convolution(hidden, hidden, size, kernel_size=kernel_size, stride=stride, groups=hidden, **inner)
    project = convolution(hidden, out_chans, _strided(size, stride), kernel_size=1)
    return _total(expand, depthwise, project, *([squeeze_excite(hidden, reduced)] if reduced else []))


def fused_inverted_residual(
    in_chans: int,
    out_chans: int,
    size: tuple[int, int],
    *,
    expand_ratio: float = 4,
    kernel_size: int = 3,
    stride: int = 1,
    fewer_norm: bool = False,
) -> Costs:
    """Costs of :class:`~foveal.layers.conv.FusedInvertedResidual`: ``(k^2 in hidden + hidden out) H' W'`` MACs."""
    hidden = round(in_chans * expand_ratio)
    inner = {"bias": fewer_norm, "norm": not fewer_norm}
    expand = convolution(in_chans, hidden, size, kernel_size=kernel_size, stride=stride, **inner)
    return _total(expand, convolution(hidden, out_chans, _strided(size, stride), kernel_size=1))


def separable_reduction(kernel_size: int, out_chans: int) -> float:
    """MACs of a dense convolution over those of a depthwise separable one of the same shape.

    ``1 / (1 / out + 1 / k^2)``: 8.69 for a 3x3 kernel and 256 channels, and always below ``k^2``.
    Source: MobileNet (arXiv 1704.04861), section 3.1.
    """
    return 1 / (1 / out_chans + 1 / kernel_size**2)


def _strided(size: tuple[int, int], stride: int) -> tuple[int, int]:
    """Size of the output: each side over the stride, rounded up."""
    return -(-size[0] // stride), -(-size[1] // stride)


def _total(*parts: Costs) -> Costs:
    return Costs(*map(sum, zip(*parts, strict=True)))

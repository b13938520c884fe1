"""What a model costs: parameters and multiply-accumulates, counted on the meta device, so that no memory is needed.

The functions beside :func:`count` have the blocks of :mod:`foveal.layers.conv` in closed form, and agree with it.
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
    """Of one image, or of one sequence."""

    params: int
    macs: int  #: of convolutions and matrix products


def _sum(shape: tuple[int, ...], *args: Any, **kwargs: Any) -> int:
    """Linear attention sums its keys; the authors' code has that sum as a product with a column of ones."""
    return 2 * math.prod(shape)


def count(model: nn.Module, in_chans: int, size: tuple[int, int]) -> Costs:
    """Count what ``model`` takes for one image of ``in_chans`` channels and ``size`` (H, W) pixels.

    MACs are those of convolutions and matrix products, as the papers print them: norms, activations, pooling and
    resizing are free, also where we write the resizing as a convolution.

    Args:
        model: built on the meta device (``with torch.device("meta")``), in evaluation mode.
    """
    return _count(model, torch.empty(1, in_chans, *size, device="meta"))


def count_tokens(model: nn.Module, length: int) -> Costs:
    """The same for a language model and one sequence of ``length`` tokens."""
    return _count(model, torch.zeros(1, length, dtype=torch.long, device="meta"))


def _count(model: nn.Module, x: torch.Tensor) -> Costs:
    model = copy.deepcopy(model).requires_grad_(False)  # the counter stumbles over parameters that modules are given
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.sum: _sum})
    with counter, torch.inference_mode():
        model(x)
    counts = counter.get_flop_counts()
    resizing = (name for name, module in model.named_modules() if isinstance(module, BicubicUpsample))
    free = sum(sum(counts.get(f"{type(model).__name__}.{name}", {}).values()) for name in resizing)
    return Costs(sum(p.numel() for p in model.parameters()), (counter.get_total_flops() - free) // 2)


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
    """Of :class:`~foveal.layers.conv.ConvNormAct` on maps of ``size`` (H, W), in closed form.

    ``k^2 in out / groups`` weights, each used at every one of the ``ceil(H/s) ceil(W/s)`` outputs.
    """
    weights = kernel_size**2 * in_chans // groups * out_chans
    params = weights + out_chans * (int(bias) + 2 * int(norm))
    return Costs(params, weights * math.prod(_strided(size, stride)))


def squeeze_excite(channels: int, reduced: int) -> Costs:
    """Of :class:`~foveal.layers.conv.SqueezeExcite`, whatever the size of the map."""
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
    """Of :class:`~foveal.layers.conv.DepthwiseSeparableConv`: ``(k^2 in + in out) H' W'`` MACs.

    Args:
        in_chans: channels of the input.
        out_chans: channels of the output.
        size: (H, W) of the input.
        kernel_size: of the depthwise convolution.
        stride: of the depthwise convolution.
        reduced: channels inside its squeeze and excitation, 0 for none.
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
    """Of :class:`~foveal.layers.conv.InvertedResidual`: ``in hidden H W + (k^2 hidden + hidden out) H' W'`` MACs.

    Arguments as in :func:`depthwise_separable`, and those of the block.
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
    """Of :class:`~foveal.layers.conv.FusedInvertedResidual`: ``(k^2 in hidden + hidden out) H' W'`` MACs."""
    hidden = round(in_chans * expand_ratio)
    inner = {"bias": fewer_norm, "norm": not fewer_norm}
    expand = convolution(in_chans, hidden, size, kernel_size=kernel_size, stride=stride, **inner)
    return _total(expand, convolution(hidden, out_chans, _strided(size, stride), kernel_size=1))


def separable_reduction(kernel_size: int, out_chans: int) -> float:
    """How many times fewer MACs a depthwise separable convolution takes than a dense one of the same shape.

    ``1 / (1 / out + 1 / k^2)``: 8.69 for 3x3 and 256 channels, below ``k^2`` always.
    Source: MobileNet (arXiv 1704.04861), section 3.1.
    """
    return 1 / (1 / out_chans + 1 / kernel_size**2)


def _strided(size: tuple[int, int], stride: int) -> tuple[int, int]:
    return -(-size[0] // stride), -(-size[1] // stride)


def _total(*parts: Costs) -> Costs:
    return Costs(*map(sum, zip(*parts, strict=True)))

"""Count the parameters and multiply-accumulates (MACs) of models, on the meta device, so that they take no memory.

:func:`count` counts a whole model. The other functions give the costs of the blocks of :mod:`foveal.layers.conv` in
closed form; both agree.
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from numbers import Integral
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from ..errors import FovealError, InputError
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
        model: a model in evaluation mode, with or without values (``with torch.device("meta")`` builds one without, of
            any size). It is not changed.
        in_chans: channels of the image.
        size: (H, W) of the image in pixels.

    Returns:
        Numbers of parameters and of MACs.

    Raises:
        InputError: an image that the model does not take, or a model that decides by the values of the image.
    """
    sides = (in_chans, *size) if isinstance(size, Sequence) and len(size) == 2 else ()
    if not sides or not all(isinstance(side, Integral) and side > 0 for side in sides):
        raise InputError(f"in_chans={in_chans!r}, size={size!r}: give the number of channels and (H, W) in pixels")
    return _count(model, torch.empty(1, *sides, dtype=_number_type(model), device="meta"))


def count_tokens(model: nn.Module, length: int) -> Costs:
    """Count the parameters of a language model, and its MACs for one sequence of ``length`` tokens.

    Raises:
        InputError: as :func:`count`.
    """
    return _count(model, torch.zeros(1, length, dtype=torch.long, device="meta"))


def _count(model: nn.Module, x: torch.Tensor) -> Costs:
    name = type(model).__name__
    if any(isinstance(p, UninitializedParameter) for p in model.parameters()):
        raise InputError(f"{name} has parameters whose shape its first input decides: run it once, then count it")
    try:
        with _OnMeta(), torch.inference_mode(), _uncompiled():
            copied = _copy_without_values(getattr(model, "_orig_mod", model))
            with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.sum: _sum}) as counter:
                copied(x)
    except FovealError:
        raise
    except Exception as error:  # whatever a model of others raises
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise InputError(
            f"{name} cannot be counted on an input of shape {tuple(x.shape)} without values ({reason}): give the "
            "model that runs on such inputs, in evaluation mode, without what reads values of tensors"
        ) from error
    counts = counter.get_flop_counts()
    resizing_modules = (place for place, module in copied.named_modules() if isinstance(module, BicubicUpsample))
    resizing = sum(sum(counts.get(f"{type(copied).__name__}.{place}", {}).values()) for place in resizing_modules)
    return Costs(sum(p.numel() for p in model.parameters()), (counter.get_total_flops() - resizing) // 2)


def _uncompiled() -> AbstractContextManager[Any]:
    """Run compiled modules as they are; importing the compiler for models without them would take seconds."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def _number_type(model: nn.Module) -> torch.dtype:
    """Type of the model's numbers, that of its first parameter."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.get_default_dtype())


def _copy_without_values(model: nn.Module) -> nn.Module:
    """A copy whose parameters are on the meta device; buffers and other tensors keep their values."""
    # The counter fails on parameters that need gradients and that modules receive as inputs.
    known: dict[int, Any] = {
        id(p): nn.Parameter(p.detach().to("meta"), requires_grad=False) for p in model.parameters()
    }
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, torch.Tensor):
                known.setdefault(id(value), value.detach().clone())  # results of operations cannot be deep-copied
    return copy.deepcopy(model, known)


class _OnMeta(TorchDispatchMode):
    """Runs an operation on the meta device if one of its tensors is there: models may hold tensors with values."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
        if any(value.is_meta for value in tensors) and not all(value.is_meta for value in tensors):
            args, kwargs = tree_map_only(torch.Tensor, lambda value: value.to("meta"), (args, kwargs or {}))
        return func(*args, **(kwargs or {}))


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

"""A torch model made faster for inference: fewer steps, the same numbers within rounding."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from .conv import ConvNormAct
from .linear import NormLinear
from .reparam import fuse_branches


def optimize(model: nn.Module) -> nn.Module:
    """Return a copy of ``model`` for inference: batch norms folded, branches fused, kernels channels last.

    The outputs are the model's within rounding: 1e-5 of the largest in float32, 1e-10 in float64. The copy keeps type,
    device and description; its parameters take no gradients. Optimise last: the copy's state dict is that of another
    network, which no checkpoint fits. It is in evaluation mode.

    Args:
        model: of :func:`foveal.create_model` or :func:`foveal.load_model`; it is left as it is.
    """
    fast = copy.deepcopy(model).eval()
    fold_norms(fast)
    fuse_branches(fast)
    return fast.requires_grad_(False).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def fold_norms(model: nn.Module) -> None:
    """Fold batch norms into the neighbouring layer, in place, by their running statistics.

    Folded are those of :class:`ConvNormAct` and :class:`NormLinear`, and in every ``nn.Sequential`` one after a Conv2d
    or in front of a Linear. The arithmetic is float64 whatever the type of the weights. A norm without running
    statistics stays.
    """
    for module in model.modules():
        if isinstance(module, ConvNormAct) and _foldable(module.norm, nn.BatchNorm2d):
            module.conv, module.norm = _into_conv(module.conv, module.norm), nn.Identity()
        elif isinstance(module, NormLinear) and _foldable(module.norm, nn.BatchNorm1d):
            folded = _into_linear(module, module.norm)
            module.weight, module.bias, module.norm = folded.weight, folded.bias, nn.Identity()
        elif type(module) is nn.Sequential:
            _fold_neighbours(module)


def _fold_neighbours(layers: nn.Sequential) -> None:
    for i in range(len(layers) - 1):
        a, b = layers[i], layers[i + 1]
        if type(a) is nn.Conv2d and _foldable(b, nn.BatchNorm2d):
            layers[i], layers[i + 1] = _into_conv(a, b), nn.Identity()
        elif type(b) is nn.Linear and _foldable(a, nn.BatchNorm1d):
            layers[i], layers[i + 1] = nn.Identity(), _into_linear(b, a)


def _foldable(norm: nn.Module, kind: type[nn.Module]) -> bool:
    return isinstance(norm, kind) and norm.running_mean is not None


def _affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """The norm as ``x * scale + shift``, per channel, in float64."""
    assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    scale = (variance + norm.eps).rsqrt()
    if norm.weight is None:
        return scale, -mean * scale
    scale = scale * norm.weight.double()
    return scale, norm.bias.double() - mean * scale


@torch.no_grad()
def _into_conv(conv: nn.Conv2d, norm: nn.Module) -> nn.Conv2d:
    """``norm(conv(x))`` as one convolution; a new one, as others may share ``conv``."""
    scale, shift = _affine(norm)
    folded, dtype = copy.deepcopy(conv), conv.weight.dtype
    bias = 0 if conv.bias is None else conv.bias.double() * scale
    folded.weight = nn.Parameter((conv.weight.double() * scale[:, None, None, None]).to(dtype))
    folded.bias = nn.Parameter((bias + shift).to(dtype))
    return folded


@torch.no_grad()
def _into_linear(linear: nn.Linear, norm: nn.Module) -> nn.Linear:
    """``linear(norm(x))`` as one linear layer."""
    scale, shift = _affine(norm)
    weight, dtype = linear.weight.double(), linear.weight.dtype
    folded = nn.Linear(linear.in_features, linear.out_features, device="meta")
    bias = weight @ shift + (0 if linear.bias is None else linear.bias.double())
    folded.weight = nn.Parameter((weight * scale).to(dtype))
    folded.bias = nn.Parameter(bias.to(dtype))
    return folded

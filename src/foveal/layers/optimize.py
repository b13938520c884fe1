"""Make a torch model faster for inference: fewer operations, the same outputs within rounding."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from .conv import ConvNormAct
from .linear import NormLinear
from .reparam import fuse_branches


def optimize(model: nn.Module) -> nn.Module:
    """Return a copy of ``model`` for inference: batch norms folded, branches fused, kernels channels last.

    The outputs equal the model's within rounding: 1e-5 of the largest in float32, 1e-10 in float64. The copy keeps the
    dtype, device and description, is in evaluation mode, and its parameters take no gradients. Load weights before you
    optimise: the copy has other keys in its state dict, and no checkpoint fits it.

    Args:
        model: a model from :func:`foveal.create_model` or :func:`foveal.load_model`; it is not changed.
    """
    fast = copy.deepcopy(model).eval()
    fold_norms(fast)
    fuse_branches(fast)
    return fast.requires_grad_(False).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def fold_norms(model: nn.Module) -> None:
    """Fold batch norms into the neighbouring layer, in place, with their running statistics.

    This covers the norms of :class:`ConvNormAct` and :class:`NormLinear`, and in every ``nn.Sequential`` a norm after a
    Conv2d or in front of a Linear. The arithmetic is float64 for weights of any dtype. A norm without running
    statistics is not folded.
    """
    for module in model.modules():
        if isinstance(module, ConvNormAct) and _foldable(module.norm, nn.BatchNorm2d):
            module.conv, module.norm = _fold_into_conv(module.conv, module.norm), nn.Identity()
        elif isinstance(module, NormLinear) and _foldable(module.norm, nn.BatchNorm1d):
            folded = _fold_into_linear(module, module.norm)
            module.weight, module.bias, module.norm = folded.weight, folded.bias, nn.Identity()
        elif type(module) is nn.Sequential:
            _fold_neighbours(module)


def _fold_neighbours(layers: nn.Sequential) -> None:
    for i in range(len(layers) - 1):
        a, b = layers[i], layers[i + 1]
        if type(a) is nn.Conv2d and _foldable(b, nn.BatchNorm2d):
            layers[i], layers[i + 1] = _fold_into_conv(a, b), nn.Identity()
        elif type(b) is nn.Linear and _foldable(a, nn.BatchNorm1d):
            layers[i], layers[i + 1] = nn.Identity(), _fold_into_linear(b, a)


def _foldable(norm: nn.Module, kind: type[nn.Module]) -> bool:
    return isinstance(norm, kind) and norm.running_mean is not None


def _affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Return scale and shift of the norm as ``x * scale + shift``, per channel, in float64."""
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
def _fold_into_conv(conv: nn.Conv2d, norm: nn.Module) -> nn.Conv2d:
    """Return ``norm(conv(x))`` as one convolution. It is a new module, because others may share ``conv``."""
    scale, shift = _affine(norm)
    folded, dtype = copy.deepcopy(conv), conv.weight.dtype
    bias = 0 if conv.bias is None else conv.bias.double() * scale
    folded.weight = nn.Parameter((conv.weight.double() * scale[:, None, None, None]).to(dtype))
    folded.bias = nn.Parameter((bias + shift).to(dtype))
    return folded


@torch.no_grad()
def _fold_into_linear(linear: nn.Linear, norm: nn.Module) -> nn.Linear:
    """Return ``linear(norm(x))`` as one linear layer."""
    scale, shift = _affine(norm)
    weight, dtype = linear.weight.double(), linear.weight.dtype
    folded = nn.Linear(linear.in_features, linear.out_features, device="meta")
    bias = weight @ shift + (0 if linear.bias is None else linear.bias.double())
    folded.weight = nn.Parameter((weight * scale).to(dtype))
    folded.bias = nn.Parameter(bias.to(dtype))
    return folded

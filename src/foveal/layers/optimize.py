"""Make a torch model faster for inference: fewer operations, the same outputs within rounding."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn

from .conv import ConvNormAct, SqueezeExcite
from .linear import NormLinear
from .linear_attention import MultiScaleLinearAttention
from .mlp import Mlp
from .packed import (
    PackedConv2d,
    PackedLinear,
    is_pointwise,
    missing_operators,
    post_op,
    prefers_packed_linears,
    prefers_rows,
)
from .reparam import fuse_branches


class Explanation:
    """What :func:`optimize` changed in a model and what it left, one line for each kind of layer.

    Args:
        title: what the model was optimised for.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self._counts: Counter[tuple[str, str]] = Counter()

    def add(self, kind: str, what: str, count: int = 1) -> None:
        """Count layers of a kind to which the same happened."""
        self._counts[kind, what] += count

    def __call__(self) -> str:
        """Return the lines."""
        counts = sorted((item for item in self._counts.items() if item[1]), key=lambda item: (item[0][0], -item[1]))
        width = max((len(kind) for (kind, _), _ in counts), default=0)
        return "\n".join([self.title, *(f"  {kind:{width}} {count:4} {what}" for (kind, what), count in counts)])


def optimize(model: nn.Module) -> nn.Module:
    """Return a copy of ``model`` for inference: batch norms folded, branches fused, layers packed for this processor.

    For float32 on a CPU, convolutions run channels last with weights in the layout of oneDNN and with the activation
    applied to each block of results, where that is faster on this processor; linear layers on AMD's processors with
    AVX-512; and the scales of EfficientViT's attention are not concatenated. Any size of input fits. These layers need
    torch's operators for oneDNN; on other devices, in other dtypes, under autocast, while a graph is traced and where
    gradients are needed they compute as before. The copy holds their weights twice after its first run.

    The outputs equal the model's within rounding: in float32 1e-5 of the largest unless the model itself is further
    from its float64 result, in float64 1e-10. The copy keeps the dtype, device and description, is in evaluation mode,
    and its parameters take no gradients. Load weights before you optimise: the copy has other keys in its state dict,
    and no checkpoint fits it. Its method ``explain()`` returns what was done to each kind of layer, what was not, and
    why.

    Args:
        model: a model from :func:`foveal.create_model` or :func:`foveal.load_model`; it is not changed.
    """
    fast = copy.deepcopy(model).eval()
    norms = _count_norms(fast)
    fold_norms(fast)
    fuse_branches(fast)
    fast.requires_grad_(False)
    parameter = next(fast.parameters(), torch.empty(0))
    device, dtype = parameter.device.type, str(parameter.dtype).removeprefix("torch.")
    explanation = Explanation(f"optimised for {dtype} on {device}")
    explanation.add("BatchNorm", "folded into the layer beside it", norms - _count_norms(fast))
    explanation.add(
        "BatchNorm", "left: no running statistics, or no layer beside it to fold it into", _count_norms(fast)
    )
    if device != "cpu":
        reason = f"left: packed layers are for the CPU, not for {device}"
        fast = fast.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    elif parameter.dtype != torch.float32:
        reason = f"left: packed layers are for float32, not for {dtype}"
    else:
        reason = missing_operators()
        reason = reason and f"left: {reason}"
    if not reason:
        _pack(fast, explanation)
    _explain_rest(fast, explanation, reason)
    object.__setattr__(fast, "explain", explanation)  # no module and no tensor, so it is not part of the state
    return fast


def _count_norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


def _pack(model: nn.Module, explanation: Explanation) -> None:
    """Replace convolutions and linear layers, in place, by packed ones that compute the activation after them too."""
    for parent in list(model.modules()):
        for layer, act in _followed_by_activation(parent):
            packed = _packed(getattr(parent, layer), getattr(parent, act), explanation)
            if packed is not None:
                setattr(parent, layer, packed)
                setattr(parent, act, nn.Identity())
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            packed = _packed(layer, nn.Identity(), explanation)
            if packed is not None:
                setattr(parent, name, packed)
        if isinstance(parent, MultiScaleLinearAttention) and parent.global_attention:
            parent.channels_last = True
            explanation.add("MultiScaleLinearAttention", "each scale on its own, no concatenation")


def _followed_by_activation(parent: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield the names of children of which the second is applied to the result of the first and nothing else."""
    pairs = {
        ConvNormAct: [("conv", "act")],
        Mlp: [("fc1", "act")],
        SqueezeExcite: [("reduce", "act"), ("expand", "gate")],
    }
    if isinstance(parent, ConvNormAct) and not isinstance(parent.norm, nn.Identity):
        return
    yield from pairs.get(type(parent), [])
    if type(parent) is nn.Sequential:
        names = [name for name, child in parent.named_children() if not isinstance(child, nn.Identity)]
        yield from pairwise(names)


def _packed(layer: nn.Module, act: nn.Module, explanation: Explanation) -> nn.Module | None:
    """Return the packed form of ``layer`` with the activation, or ``None`` if there is none or it is not faster."""
    if post_op(act) is None or layer._forward_hooks or layer._forward_pre_hooks:
        return None
    fused = "" if isinstance(act, nn.Identity) else f" with {type(act).__name__}"
    if type(layer) is nn.Linear and prefers_packed_linears():
        explanation.add("Linear", f"packed for oneDNN{fused}")
        return PackedLinear(layer, act)
    if type(layer) is nn.Conv2d and layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
        rows = prefers_rows() and is_pointwise(layer)
        how = "1x1, as a product of matrices by MKL" if rows else "packed for oneDNN"
        explanation.add("Conv2d", f"{how}{fused}")
        return PackedConv2d(layer, act, rows=rows)
    return None


def _explain_rest(model: nn.Module, explanation: Explanation, reason: str) -> None:
    """Count the layers with weights that were left, with ``reason`` or their own."""
    done = (PackedConv2d, PackedLinear, nn.modules.batchnorm._BatchNorm)
    for module in model.modules():
        if isinstance(module, done) or not any(True for _ in module.parameters(recurse=False)):
            continue
        why = reason if isinstance(module, nn.Conv2d | nn.Linear) else ""
        if not why and type(module) is nn.Linear and not prefers_packed_linears():
            why = "left: torch's own is as fast on this processor"
        explanation.add(type(module).__name__, why or "left: no faster form")


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

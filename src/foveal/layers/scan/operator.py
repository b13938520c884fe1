"""The compiled scans as a torch operator, ``foveal::selective_scan``, for gradients, torch.compile and torch.export.

The operator is declared with ``torch.library.Library`` and differentiated by an ``autograd.Function``, because
the overhead of ``torch.library.custom_op`` per call is as large as the scan of a short sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import cpu

_INPUTS = "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? bias, bool softplus, str form"
_library = torch.library.Library("foveal", "FRAGMENT")
_library.define(f"selective_scan({_INPUTS}) -> (Tensor, Tensor)")
_library.define(
    f"selective_scan_backward(Tensor dy, Tensor dstate, {_INPUTS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    bias: Tensor | None,
    softplus: bool,
    form: str,
) -> tuple[Tensor, Tensor]:
    """Return ``y`` ``(B, D, L)`` and the last state ``(B, D, N)``; ``form`` is "kernel" (CPUs) or "triton".

    All tensors are float32, or all float64; B and C are ``(B, G, N, L)``. Differentiable once.
    """
    inputs = (u, delta, A, B, C, D, bias)
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in inputs):
        return _Scan.apply(*inputs, softplus, form)
    return torch.ops.foveal.selective_scan.default(*inputs, softplus, form)


class _Scan(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return torch.ops.foveal.selective_scan.default(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *tensors, ctx.softplus, ctx.form = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        (dy, dstate), saved = gradients, ctx.saved_tensors  # gradient checkpointing allows only one access
        du, ddelta, dA, dB, dC = torch.ops.foveal.selective_scan_backward.default(
            dy, dstate, *saved, ctx.softplus, ctx.form
        )
        u, _, _, _, _, D, bias = saved
        dD = None if D is None else (dy * u).sum((0, 2))
        dbias = None if bias is None else ddelta.sum((0, 2))
        return du, ddelta, dA, dB, dC, dD, dbias, None, None


def _module(form: str) -> Any:
    if form == "kernel":
        return cpu
    from . import gpu  # imports triton

    return gpu


@torch.library.impl(_library, "selective_scan", "CompositeExplicitAutograd")
def _(*inputs: Any) -> tuple[Tensor, Tensor]:
    return _module(inputs[-1]).forward(*inputs[:-1])


@torch.library.impl(_library, "selective_scan_backward", "CompositeExplicitAutograd")
def _(*inputs: Any) -> tuple[Tensor, ...]:
    return _module(inputs[-1]).backward(*inputs[:-1])


@torch.library.register_fake("foveal::selective_scan", lib=_library)
def _(u: Tensor, _delta: Tensor, A: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return u.new_empty(u.shape), u.new_empty(u.shape[0], *A.shape)


@torch.library.register_fake("foveal::selective_scan_backward", lib=_library)
def _(_dy: Tensor, _dstate: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    return tuple(tensor.new_empty(tensor.shape) for tensor in inputs[:5])


#: Dimension of channels, or of groups of channels, in u, delta, A, B, C, D and bias.
_CHANNELS = (1, 1, 0, 1, 1, 0, 0)

_register_vmap: Any = torch.library.register_vmap  # its stubs have no form for decorators


def _join_items(size: int, dims: Sequence[int | None], tensors: Sequence[Any], channels: Sequence[int]) -> list[Any]:
    """Put the items of ``torch.vmap`` side by side as channels; a tensor that has no items is repeated."""
    joined: list[Any] = []
    for tensor, dim, channel in zip(tensors, dims, channels, strict=True):
        if tensor is None:
            joined.append(None)
        else:
            items = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
            joined.append(items.movedim(0, channel).flatten(channel, channel + 1))
    return joined


@_register_vmap("foveal::selective_scan", lib=_library)
def _(info: Any, dims: tuple[int | None, ...], *inputs: Any) -> tuple[Any, Any]:
    tensors = _join_items(info.batch_size, dims[:7], inputs[:7], _CHANNELS)
    outputs = torch.ops.foveal.selective_scan.default(*tensors, *inputs[7:])
    return tuple(output.unflatten(1, (info.batch_size, -1)) for output in outputs), (1, 1)


@_register_vmap("foveal::selective_scan_backward", lib=_library)
def _(info: Any, dims: tuple[int | None, ...], *inputs: Any) -> tuple[Any, Any]:
    tensors = _join_items(info.batch_size, dims[:9], inputs[:9], (1, 1, *_CHANNELS))
    gradients = torch.ops.foveal.selective_scan_backward.default(*tensors, *inputs[9:])
    channels = _CHANNELS[:5]
    split = (g.unflatten(channel, (info.batch_size, -1)) for g, channel in zip(gradients, channels, strict=True))
    return tuple(split), channels

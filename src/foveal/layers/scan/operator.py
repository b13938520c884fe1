"""The compiled forms as one operator of torch, ``foveal::selective_scan``: gradients, torch.compile, torch.export."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import cpu

_INPUTS = "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? bias, bool softplus, str form"


def _module(form: str) -> Any:
    if form == "kernel":
        return cpu
    from . import gpu  # imports triton

    return gpu


@torch.library.custom_op("foveal::selective_scan", mutates_args=(), schema=f"({_INPUTS}) -> (Tensor, Tensor)")
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
    """``y`` ``(B, D, L)`` and the last state ``(B, D, N)``, by the "kernel" for CPUs or "triton".

    Float32 or float64 throughout; B and C ``(B, G, N, L)``. Differentiable once.
    """
    return _module(form).forward(u, delta, A, B, C, D, bias, softplus)


@scan.register_fake
def _(u: Tensor, _delta: Tensor, A: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return u.new_empty(u.shape), u.new_empty(u.shape[0], *A.shape)


@torch.library.custom_op(
    "foveal::selective_scan_backward",
    mutates_args=(),
    schema=f"(Tensor dy, Tensor dstate, {_INPUTS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _gradients(dy: Tensor, dstate: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    return _module(inputs[-1]).backward(dy, dstate, *inputs[:-1])


@_gradients.register_fake
def _(_dy: Tensor, _dstate: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    return tuple(tensor.new_empty(tensor.shape) for tensor in inputs[:5])


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.softplus, ctx.form = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, dy: Tensor, dstate: Tensor) -> tuple[Tensor | None, ...]:
    u, delta, A, B, C, D, bias = ctx.saved_tensors
    du, ddelta, dA, dB, dC = _gradients(dy, dstate, u, delta, A, B, C, D, bias, ctx.softplus, ctx.form)
    dD = None if D is None else (dy * u).sum((0, 2))
    dbias = None if bias is None else ddelta.sum((0, 2))
    return du, ddelta, dA, dB, dC, dD, dbias, None, None


scan.register_autograd(_backward, setup_context=_save)

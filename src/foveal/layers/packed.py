"""Convolutions and linear layers with weights in the blocked layout of oneDNN, for float32 inference on CPUs.

torch converts the weight of a convolution from its own layout to that of oneDNN at every call, and computes the
activation in a pass of its own. These layers convert the weight at the first call, and oneDNN applies the activation
to each block of results before it is written. The operators, ``torch.ops.mkldnn``, are those that ``torch.compile``
uses. They take no gradients and are not part of torch's public interface, so every layer keeps its plain weight, with
which it computes as before wherever the operators do not apply.

Which library is faster depends on the processor, at one thread in float32. MKL has no kernels for AVX-512 on AMD's
processors, where oneDNN multiplies matrices faster. With AVX2, MKL is faster than oneDNN's 1x1 convolution of
channels-last maps, so there a 1x1 convolution is a matrix product of MKL.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_OPERATORS = ("_convolution_pointwise", "_reorder_convolution_weight", "_linear_pointwise", "_reorder_linear_weight")
#: Rows from which a packed linear layer is used: below, it reads more than it computes, and the plain one is as fast.
_LEAST_ROWS = 8

PostOp = tuple[str, list[float | None], str]  #: oneDNN's name of an activation, its constants, its algorithm
_NO_POST_OP: PostOp = ("none", [], "")


def missing_operators() -> str:
    """Return why this torch cannot run packed layers, or "" if it can."""
    if not torch.backends.mkldnn.is_available() or not torch.backends.mkldnn.enabled:
        return "this torch has no oneDNN, or it is switched off"
    missing = [name for name in _OPERATORS if not hasattr(torch.ops.mkldnn, name)]
    return f"this torch has no operator mkldnn.{missing[0]}" if missing else ""


def prefers_rows() -> bool:
    """Whether MKL multiplies the rows of a channels-last map faster than oneDNN's 1x1 convolution here."""
    return torch.backends.mkl.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX2"


def prefers_packed_linears() -> bool:
    """Whether a packed linear layer is faster here than torch's, which MKL computes."""
    return torch.backends.mkl.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512" and _is_amd()


@cache
def _is_amd() -> bool:
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        return "AuthenticAMD" in platform.processor()


def post_op(act: nn.Module) -> PostOp | None:
    """Return how oneDNN applies ``act`` to the result of a layer, or ``None`` if it cannot."""
    if type(act) is nn.ReLU6:
        return "hardtanh", [0.0, 6.0], ""
    if type(act) is nn.Hardtanh:
        return "hardtanh", [act.min_val, act.max_val], ""
    if type(act) is nn.LeakyReLU:
        return "leaky_relu", [act.negative_slope], ""
    if type(act) is nn.GELU:
        return "gelu", [], act.approximate
    names = {nn.Identity: "none", nn.ReLU: "relu", nn.Hardswish: "hardswish", nn.SiLU: "swish", nn.Sigmoid: "sigmoid"}
    names |= {nn.Hardsigmoid: "hardsigmoid", nn.Tanh: "tanh"}
    name = names.get(type(act))
    return None if name is None else (name, [], "")


def _in_place(act: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return ``act``, one that :func:`post_op` knows, as a function that overwrites its input."""
    if isinstance(act, nn.Identity):
        return lambda x: x
    if isinstance(act, nn.GELU):
        return lambda x: torch.ops.aten.gelu_(x, approximate=act.approximate)
    if isinstance(act, nn.LeakyReLU):
        return lambda x: F.leaky_relu(x, act.negative_slope, inplace=True)
    if isinstance(act, nn.Hardtanh):  # and ReLU6
        return lambda x: x.clamp_(act.min_val, act.max_val)
    if isinstance(act, nn.Sigmoid | nn.Tanh):
        return Tensor.sigmoid_ if isinstance(act, nn.Sigmoid) else Tensor.tanh_
    functions = {nn.ReLU: F.relu, nn.Hardswish: F.hardswish, nn.SiLU: F.silu, nn.Hardsigmoid: F.hardsigmoid}
    function = functions[type(act)]
    return lambda x: function(x, inplace=True)


class _PackedWeight(nn.Module):
    """Forget the packed weight when the plain one changes."""

    _packed: Tensor | None = None

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._packed = None  # of another device or number type, or of another weight
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._packed = None
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packed": None}  # a packed tensor can neither be copied nor pickled


class PackedConv2d(_PackedWeight, nn.Conv2d):
    """A convolution and the activation after it: ``(B, in_chans, H, W) -> (B, out_chans, H', W')``, channels last.

    The weight is packed for the size of the first input and computes any other size too.

    Args:
        conv: the convolution, with zero padding that is given in pixels; its parameters are shared, not copied.
        act: the activation, one that :func:`post_op` knows.
        rows: compute a 1x1 convolution as the product of the map's rows and the weight; see :func:`prefers_rows`.
    """

    def __init__(self, conv: nn.Conv2d, act: nn.Module, *, rows: bool = False) -> None:
        size = (conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation)
        super().__init__(*size, conv.groups, bias=False, device="meta")  # pyright: ignore[reportArgumentType]
        self.weight, self.bias, self.act = conv.weight, conv.bias, act
        self._post_op = post_op(act) or _NO_POST_OP
        self.rows = rows and is_pointwise(conv)

    def forward(self, input: Tensor) -> Tensor:
        if not (can_run(input, self.weight) and input.dim() == 4 and self._fits(input)):
            return self.act(super().forward(input))
        input = input.contiguous(memory_format=torch.channels_last)
        if self.rows:
            rows = F.linear(input.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias)
            return _in_place(self.act)(rows).permute(0, 3, 1, 2)
        geometry: tuple[Any, ...] = (self.padding, self.stride, self.dilation, self.groups)
        if self._packed is None:
            self._packed = torch.ops.mkldnn._reorder_convolution_weight(self.weight.detach(), *geometry, input.shape)
        return torch.ops.mkldnn._convolution_pointwise.default(
            input, self._packed, self.bias, *geometry, *self._post_op
        )

    def _fits(self, input: Tensor) -> bool:
        """Whether the input has the right channels and gives at least one pixel; if not, torch raises its error."""
        spans = zip(input.shape[2:], self.padding, self.dilation, self.kernel_size, strict=True)
        covered = all(n + 2 * int(pad) > step * (side - 1) for n, pad, step, side in spans)
        return covered and input.shape[1] == self.in_channels


class PackedLinear(_PackedWeight, nn.Linear):
    """A linear layer and the activation after it: ``(..., in_features) -> (..., out_features)``.

    Args:
        linear: the layer; its parameters are shared, not copied.
        act: the activation, one that :func:`post_op` knows.
    """

    def __init__(self, linear: nn.Linear, act: nn.Module) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight, self.bias, self.act = linear.weight, linear.bias, act
        self._post_op = post_op(act) or _NO_POST_OP

    def forward(self, input: Tensor) -> Tensor:
        rows = input.numel() // max(self.in_features, 1)
        if not can_run(input, self.weight) or input.shape[-1] != self.in_features or rows < _LEAST_ROWS:
            return self.act(super().forward(input))
        if self._packed is None:
            self._packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach(), rows)
        return torch.ops.mkldnn._linear_pointwise.default(input, self._packed, self.bias, *self._post_op)


def is_pointwise(conv: nn.Conv2d) -> bool:
    """Whether ``conv`` is an ungrouped 1x1 convolution of every pixel."""
    return conv.kernel_size == conv.stride == (1, 1) and conv.padding == (0, 0) and conv.groups == 1


def can_run(x: Tensor, weight: Tensor) -> bool:
    """Whether the operators apply: float32 on the CPU, no gradient, and nobody records the operators for later."""
    return (
        x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and x.numel() > 0
        and not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
    )

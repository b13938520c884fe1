"""The selective scan of Mamba (arXiv 2312.00752, section 3.2 and algorithm 2): five implementations, one function.

``loop`` is the definition; ``parallel`` is a graph of standard operations, for export; ``chunked`` is for long
sequences in plain torch; ``kernel`` is compiled for this machine's CPU at first use; ``triton`` is for NVIDIA GPUs.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from typing import Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import ConfigError, DependencyError, InputError, nearest
from ..leaf import constant, leaf
from . import cpu, reference
from .operator import scan

_PLAIN = {"loop": reference.loop, "parallel": reference.parallel, "chunked": reference.chunked}
METHODS = ("auto", *_PLAIN, "kernel", "triton")


@overload
def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = ..., z: Tensor | None = ...,
    delta_bias: Tensor | None = ..., delta_softplus: bool = ..., return_last_state: Literal[False] = ...,
    method: str = ...,
) -> Tensor:  # fmt: skip
    """Return ``y``."""


@overload
def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = ..., z: Tensor | None = ...,
    delta_bias: Tensor | None = ..., delta_softplus: bool = ..., *, return_last_state: Literal[True],
    method: str = ...,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return ``y`` and the last state."""


@leaf
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    method: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Scan ``h_t = exp(dt_t A) h_{t-1} + dt_t u_t B_t``, ``y_t = C_t . h_t + D u_t``, from ``h_{-1} = 0``.

    Args:
        u: input, ``(B, D, L)``.
        delta: step sizes before bias and softplus, ``(B, D, L)``: ``dt = softplus(delta + delta_bias)``.
        A: state matrix, ``(D, N)``, real; states decay where it is negative.
        B: input matrix: ``(B, N, L)``; ``(B, G, N, L)``, where channel ``j`` uses group ``j // (D / G)``; or the same
            for all tokens, ``(D, N)``.
        C: output matrix, of any of these shapes.
        D: skip connection, ``(D,)``.
        z: gate, ``(B, D, L)``: ``y`` is multiplied by ``SiLU(z)``.
        delta_bias: ``(D,)``, added to ``delta``.
        delta_softplus: whether softplus is applied to the step sizes; ``False``: ``dt = delta + delta_bias``.
        return_last_state: whether to return ``h`` after the last token, too.
        method: ``"loop"``, ``"parallel"``, ``"chunked"``, ``"kernel"``, ``"triton"``; or ``"auto"``: parallel while a
            graph is exported, triton on NVIDIA GPUs, the kernel on CPUs if there is a compiler, else chunked.

    Returns:
        ``y``, ``(B, D, L)`` in the dtype of ``u``; with ``return_last_state`` also ``h``, ``(B, D, N)``, in float32 or
        float64. 16-bit and 32-bit inputs are computed in float32 (the loop: in float64), also under autocast.

    Raises:
        ConfigError: an unknown ``method``.
        InputError: tensors whose shapes, dtypes or devices do not fit together, or complex tensors.
        DependencyError: the compiler of the requested ``method`` is missing.
    """
    if method not in METHODS:
        raise ConfigError(f"method={method!r}: no such method of the selective scan{nearest(method, METHODS)}")
    _check_inputs(u, delta, A, B, C, D, z, delta_bias)
    method = _choose_method(u) if method == "auto" else method
    wide = torch.promote_types(u.dtype, torch.float32)
    inner = torch.float64 if method == "loop" and u.device.type != "mps" else wide  # mps has no float64
    matrices = (A, _add_groups(B, u), _add_groups(C, u))
    x, dt, A, B, C = (v if v.dtype == inner else v.to(inner) for v in (u, delta, *matrices))
    D, z, bias = (None if v is None else v.to(inner) for v in (D, z, delta_bias))
    if method in _PLAIN:
        with _without_autocast(u):
            dt = dt if bias is None else dt + bias[:, None]
            y, state = _PLAIN[method](x, F.softplus(dt) if delta_softplus else dt, A, B, C)
        y = y if D is None else y + x * D[:, None]
    else:
        _check_available(method, u)
        y, state = scan(x, dt, A, B, C, D, bias, delta_softplus, method)
    y = (y if z is None else y * F.silu(z)).to(u.dtype)
    return (y, state.to(wide)) if return_last_state else y


def _choose_method(u: Tensor) -> str:
    if torch.compiler.is_exporting() or torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
        return "parallel"
    if u.device.type == "cuda" and _has_triton():
        return "triton"
    return "kernel" if u.device.type == "cpu" and _has_kernel() else "chunked"


@constant
def _has_kernel() -> bool:
    return cpu.available()


@constant
def _has_triton() -> bool:
    return find_spec("triton") is not None


def _check_available(method: str, u: Tensor) -> None:
    """Raise if a compiled method has no compiler, or does not run on the device of ``u``."""
    if method == "kernel":
        if u.device.type != "cpu":
            raise InputError(f"selective_scan: method='kernel' is for tensors on the CPU; u is on {u.device}")
        if not _has_kernel():
            raise DependencyError(
                "selective_scan: method='kernel' needs a C++ compiler: install g++ or clang++, or use method='chunked'"
            )
    else:
        if not _has_triton():
            raise DependencyError("selective_scan: method='triton' needs triton: pip install triton")
        if u.device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
            raise InputError(f"selective_scan: method='triton' is for tensors on an NVIDIA GPU; u is on {u.device}")


def _without_autocast(u: Tensor) -> AbstractContextManager[object]:
    device = u.device.type  # the meta device, on which costs are counted, has no autocast to switch off
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def _add_groups(matrix: Tensor, u: Tensor) -> Tensor:
    """Expand B or C to ``(B, G, N, L)``."""
    if matrix.dim() == 2:
        return matrix[None, :, :, None].expand(u.shape[0], -1, -1, u.shape[2])
    return matrix.unsqueeze(1) if matrix.dim() == 3 else matrix


def _check_inputs(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
) -> None:
    """Raise InputError for the first argument that does not fit ``u`` and ``A``."""
    tensors = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "z": z, "delta_bias": delta_bias}
    for name, tensor in tensors.items():
        if tensor is not None:
            _check_dtype_and_device(name, tensor, u)
    if u.dim() != 3 or u.shape[2] < 1:
        raise InputError(f"selective_scan: u has shape {tuple(u.shape)}; expected (B, D, L) with at least one token")
    if A.dim() != 2 or A.shape[0] != u.shape[1]:
        raise InputError(f"selective_scan: A has shape {tuple(A.shape)}; expected (D, N) with D = {u.shape[1]} as in u")
    for name in ("delta", "z"):
        tensor = tensors[name]
        if tensor is not None and tensor.shape != u.shape:
            expected = f"{tuple(u.shape)} as in u"
            raise InputError(f"selective_scan: {name} has shape {tuple(tensor.shape)}; expected {expected}")
    for name in ("D", "delta_bias"):
        tensor = tensors[name]
        if tensor is not None and tensor.shape != (u.shape[1],):
            raise InputError(f"selective_scan: {name} has shape {tuple(tensor.shape)}; expected ({u.shape[1]},)")
    for name, tensor in (("B", B), ("C", C)):
        _check_matrix(name, tuple(tensor.shape), u, A)


def _check_dtype_and_device(name: str, tensor: Tensor, u: Tensor) -> None:
    if tensor.is_complex():
        raise InputError(f"selective_scan: {name} is complex; only real tensors are supported")
    if not tensor.is_floating_point():
        raise InputError(f"selective_scan: {name} has dtype {tensor.dtype}; expected a floating-point dtype")
    if tensor.device != u.device:
        raise InputError(f"selective_scan: {name} is on {tensor.device}, u is on {u.device}; move them to one device")


def _check_matrix(name: str, shape: tuple[int, ...], u: Tensor, A: Tensor) -> None:
    """Raise InputError if the input or output matrix has another shape than the three that are possible."""
    (batch, channels, length), states = u.shape, A.shape[1]
    valid = shape in ((batch, states, length), (channels, states))
    if len(shape) == 4:
        groups = shape[1]
        valid = shape == (batch, groups, states, length) and groups > 0 and channels % groups == 0
    if not valid:
        raise InputError(
            f"selective_scan: {name} has shape {shape}; expected ({batch}, {states}, {length}), ({batch}, G, "
            f"{states}, {length}) with G dividing {channels}, or ({channels}, {states})"
        )

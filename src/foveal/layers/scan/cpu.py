"""The selective scan compiled for this machine's CPU: build ``scan.cpp`` once and call it.

:mod:`foveal.compiling` says where the library is kept.
"""

from __future__ import annotations

import ctypes
import platform
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from ...compiling import build
from ...errors import DependencyError, InputError

SOURCE = Path(__file__).with_name("scan.cpp")


def available() -> bool:
    """Whether the kernel is built or can be built; if not, the reason is given once as a warning."""
    return _library() is not None


def forward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, bias: Tensor | None, softplus: bool
) -> tuple[Tensor, Tensor]:
    """Return ``y`` ``(B, D, L)`` and the last state ``(B, D, N)`` for float32 or float64 tensors."""
    y, state = u.new_empty(u.shape), u.new_empty(u.shape[0], *A.shape)
    _call("forward", u, delta, A, B, C, D, bias, softplus, (y, state))
    return y, state


def backward(
    dy: Tensor,
    dstate: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    bias: Tensor | None,
    softplus: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of u, delta, A, B and C, given those of ``y`` and of the last state."""
    batch, groups, states, length = B.shape
    blocks = -(-u.shape[1] // groups // _lanes(u))
    du, ddelta, dA = u.new_empty(u.shape), u.new_empty(u.shape), u.new_empty(batch, *A.shape)
    dB, dC = (u.new_empty(batch, groups, blocks, states, length) for _ in "BC")
    inputs = (dy.contiguous(), dstate.contiguous())
    _call("backward", u, delta, A, B, C, D, bias, softplus, (*inputs, du, ddelta, dA, dB, dC))
    return du, ddelta, dA.sum(0), dB.sum(2), dC.sum(2)


def _call(
    name: str,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    bias: Tensor | None,
    softplus: bool,
    others: tuple[Tensor, ...],
) -> None:
    inputs = [tensor if tensor is None else tensor.contiguous() for tensor in (u, delta, A, B, C, D, bias)]
    enough_memory = _function(name, u.dtype)(
        *(None if tensor is None else tensor.data_ptr() for tensor in inputs),
        *(u.shape[0], u.shape[1], B.shape[1], A.shape[1], u.shape[2]),
        softplus,
        torch.get_num_threads(),
        *(tensor.data_ptr() for tensor in others),
    )
    if not enough_memory:
        raise MemoryError("selective_scan: not enough memory for the kernel's states; use a smaller batch")


def _lanes(u: Tensor) -> int:
    return _function("lanes", u.dtype)()


@cache
def _function(name: str, dtype: torch.dtype) -> Callable[..., int]:
    """Return a function of the library, with the types of its arguments declared."""
    function = getattr(_library(), f"{name}_{'f64' if dtype == torch.float64 else 'f32'}")
    pointers, sizes = [ctypes.c_void_p], [ctypes.c_int64]
    if name == "lanes":
        function.restype = ctypes.c_int64
    else:
        others = {"forward": 2, "backward": 7}[name]
        function.argtypes = pointers * 7 + sizes * 5 + [ctypes.c_bool] + sizes + pointers * others
        function.restype = ctypes.c_bool
    return function


@cache
def _library() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(str(_build()))
    except (OSError, DependencyError, InputError) as error:  # InputError: the folder cannot be written
        reason = str(error)
    message = f"selective_scan: no kernel for this CPU, using the slower method 'chunked' instead: {reason}"
    warnings.warn(message, RuntimeWarning, stacklevel=2)
    return None


def _build() -> Path:
    """Return the path of the library; build it if it does not exist yet."""
    native = "-mcpu=native" if platform.machine().lower() in ("arm64", "aarch64") else "-march=native"
    return build("scan", "the selective scan", SOURCE.parent, SOURCE.name, ("-O3", "-ffp-contract=fast", native))

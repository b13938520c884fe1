"""The selective scan compiled for this machine's CPU: build ``scan.cpp`` once and call it.

The library is built at first use by the system's C++ compiler (``CXX``, c++, g++ or clang++) into
``$XDG_CACHE_HOME/foveal`` (``~/.cache/foveal``). Its file name is a hash of the source, the flags, and the macros that
the compiler predefines for this processor (the compiler's version and the instruction sets).
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from ...errors import DependencyError, InputError
from ...files import atomic_write
from ...text import notice

SOURCE = Path(__file__).with_name("scan.cpp")
_FLAGS = ["-std=c++17", "-O3", "-ffp-contract=fast", "-fPIC", "-shared", "-pthread", "-Wno-psabi"]


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
    except subprocess.CalledProcessError as error:
        reason = f"{error.cmd[0]}: {(error.stderr.strip() or 'failed').splitlines()[0]}"
    except (OSError, DependencyError, InputError) as error:  # InputError: the folder cannot be written
        reason = str(error)
    message = f"selective_scan: no kernel for this CPU, using the slower method 'chunked' instead: {reason}"
    warnings.warn(message, RuntimeWarning, stacklevel=2)
    return None


def _build() -> Path:
    """Return the path of the library; build it if it does not exist yet."""
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX", ""), "c++", "g++", "clang++"))), None)
    if compiler is None:
        raise DependencyError("no C++ compiler found (c++, g++, clang++ or CXX)")
    native = "-mcpu=native" if platform.machine().lower() in ("arm64", "aarch64") else "-march=native"
    command = [compiler, *_FLAGS, native]
    macros = _run([*command, "-x", "c++", "-dM", "-E", "-"])
    key = hashlib.sha256(repr((command, macros)).encode() + SOURCE.read_bytes()).hexdigest()[:20]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "foveal"
    path = folder / f"scan-{key}{'.dll' if sys.platform == 'win32' else '.so'}"
    if not path.exists():
        notice(f"compiling the selective scan for this CPU (once) into {folder}")
        with atomic_write(path) as temporary:
            _run([*command, str(SOURCE), "-o", str(temporary)])
    return path


def _run(command: list[str]) -> str:
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True).stdout

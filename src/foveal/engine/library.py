"""The compiled library of the engine: built once by the system's compiler, for one instruction set."""

from __future__ import annotations

import ctypes
import os
import platform
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..compiling import build
from ..errors import DependencyError, nearest

_SOURCES = Path(__file__).with_name("csrc")
_FLAGS = ("-O3", "-ffp-contract=fast", "-fno-math-errno")
#: Instruction sets, best first: name -> machine, flags of the processor, flags of the compiler.
_SETS: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "avx512": (
        ("x86_64", "amd64"),
        ("avx512f", "avx512bw", "avx512dq", "avx512vl", "fma"),
        ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"),
    ),
    "avx2": (("x86_64", "amd64"), ("avx2", "fma"), ("-mavx2", "-mfma")),
    "sse": (("x86_64", "amd64"), (), ()),
    "neon": (("aarch64", "arm64"), (), ()),
}
VARIABLE = "FOVEAL_ISA"  #: environment variable that chooses the instruction set


class Map(ctypes.Structure):
    """A map (struct Map in csrc/interface.h)."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("batch", "height", "width", "channels")),
        *((name, ctypes.c_int64) for name in ("pixel", "row", "image", "border")),
    ]


class Op(ctypes.Structure):
    """An operation (struct Op in csrc/interface.h)."""

    _fields_ = [
        ("kind", ctypes.c_int32),
        ("act", ctypes.c_int32),
        ("inputs", ctypes.c_int32 * 4),
        ("out", ctypes.c_int32),
        ("residual", ctypes.c_int32),
        ("weight", ctypes.c_void_p * 4),
        ("bias", ctypes.c_void_p * 4),
        ("p", ctypes.c_int64 * 12),
        ("f", ctypes.c_double * 4),
        ("work", ctypes.c_void_p),
    ]


class Library:
    """The library for one instruction set.

    Attributes:
        name: the instruction set.
        width: floats of a vector.
        panel: output channels of a panel of packed weights.
        cache: bytes of the second-level cache of a core.
    """

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self._library = ctypes.CDLL(str(path))
        for function in ("foveal_width", "foveal_panel", "foveal_cache"):
            getattr(self._library, function).restype = ctypes.c_int64
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        self._library.foveal_pack.argtypes = [pointer, number, number, pointer]
        self._library.foveal_pack_depthwise.argtypes = [pointer, number, number, pointer]
        self._library.foveal_run.argtypes = [pointer, number, pointer, ctypes.c_int, pointer]
        self._library.foveal_run.restype = ctypes.c_int
        self.run = self._library.foveal_run
        self.width: int = self._library.foveal_width()
        self.panel: int = self._library.foveal_panel()
        self.cache: int = self._library.foveal_cache()

    def peak(self) -> float:
        """Floating-point operations per second that one core reaches on values in registers."""
        self._library.foveal_peak.restype = ctypes.c_double
        return self._library.foveal_peak()

    def padded(self, channels: int) -> int:
        """Channels, rounded up to whole vectors."""
        return -(-channels // self.width) * self.width

    def pack(self, weight: NDArray[np.float32]) -> NDArray[np.float32]:
        """Weights ``(outputs, depth)`` in panels of output channels."""
        outputs, depth = weight.shape
        packed = aligned(self.padded(outputs) * depth)
        self._library.foveal_pack(weight.ctypes.data, outputs, depth, packed.ctypes.data)
        return packed

    def pack_depthwise(self, weight: NDArray[np.float32]) -> NDArray[np.float32]:
        """Weights ``(channels, 1, K, K)`` in vectors of channels."""
        weight = np.ascontiguousarray(weight)
        channels, taps = len(weight), weight[0].size
        packed = aligned(self.padded(channels) * taps)
        self._library.foveal_pack_depthwise(weight.ctypes.data, channels, taps, packed.ctypes.data)
        return packed


def aligned(floats: int) -> NDArray[np.float32]:
    """An uninitialised array that begins at a multiple of 64 bytes."""
    memory = np.empty(floats + 16, np.float32)
    start = -(memory.ctypes.data // 4) % 16
    return memory[start : start + floats]


def processor_flags() -> set[str]:
    """Names of the instruction sets of this processor, as Linux and macOS give them."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return set(line.partition(":")[2].split())
    except OSError:
        pass
    return set()


def instruction_sets() -> list[str]:
    """The instruction sets that this machine runs, best first."""
    machine, flags = platform.machine().lower(), processor_flags()
    return [name for name, (machines, needed, _) in _SETS.items() if machine in machines and flags.issuperset(needed)]


def load_library(name: str = "") -> Library:
    """The library for an instruction set, built at first use.

    Args:
        name: the instruction set; empty: that of the variable ``FOVEAL_ISA``, or the best one of this machine.

    Raises:
        DependencyError: this machine does not run that instruction set, or no compiler builds the library.
    """
    return _load(name or os.environ.get(VARIABLE, ""))


@cache
def _load(name: str) -> Library:
    usable = instruction_sets()
    if not usable or (name and name not in usable):
        raise DependencyError(
            f"the native engine: this processor does not run {name or platform.machine()!r}{nearest(name, usable)}"
        )
    name = name or usable[0]
    return Library(name, build("engine", "the native engine", _SOURCES, "engine.cpp", (*_FLAGS, *_SETS[name][2])))


def available() -> tuple[bool, str]:
    """Whether the library is built or can be built, and the reason if not."""
    try:
        load_library()
    except (DependencyError, OSError) as error:
        return False, str(error)
    return True, ""

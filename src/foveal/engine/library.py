"""The compiled library of the engine: built once by the system's compiler, for one instruction set and one type."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..compiling import build
from ..errors import ConfigError, DependencyError, InputError, nearest

_SOURCES = Path(__file__).with_name("csrc")
_FLAGS = ("-O2", "-ffp-contract=fast", "-fno-math-errno", "-fvisibility=hidden")
#: Types of maps and of the weights of products: name -> further flags of the compiler.
DTYPES: dict[str, tuple[str, ...]] = {"float32": (), "bfloat16": ("-DFOVEAL_BFLOAT16",)}
_AVX512 = ("avx512f", "avx512bw", "avx512dq", "avx512vl", "fma")
_AVX512_FLAGS = (*(f"-m{name}" for name in _AVX512), "-mprefer-vector-width=512")
_TILES = "amx"  # "avx512bf16" with products of bfloat16 in tile registers
_PRODUCTS = "avx512bf16"  # "avx512" with products of bfloat16
_HALF = (_TILES, _PRODUCTS)  # in float32 they are the same as "avx512"
#: Instruction sets, best first: name -> machine, flags of the processor, flags of the compiler.
_SETS: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    _TILES: (
        ("x86_64", "amd64"),
        (*_AVX512, "avx512_bf16", "amx_tile", "amx_bf16"),
        (*_AVX512_FLAGS, "-mavx512bf16", "-mamx-tile", "-mamx-bf16"),
    ),
    _PRODUCTS: (("x86_64", "amd64"), (*_AVX512, "avx512_bf16"), (*_AVX512_FLAGS, "-mavx512bf16")),
    "avx512": (("x86_64", "amd64"), _AVX512, _AVX512_FLAGS),
    "avx2": (("x86_64", "amd64"), ("avx2", "fma"), ("-mavx2", "-mfma")),
    "sse": (("x86_64", "amd64"), (), ()),
    "neon": (("aarch64", "arm64"), (), ()),
}
VARIABLE = "FOVEAL_ISA"  #: environment variable that chooses the instruction set
#: Environment variable with further flags of the compiler, for tests: sanitizers, another width of vectors.
FLAGS_VARIABLE = "FOVEAL_ENGINE_FLAGS"


class Map(ctypes.Structure):
    """A map (struct Map in csrc/interface.h)."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("batch", "height", "width", "channels")),
        *((name, ctypes.c_int64) for name in ("pixel", "row", "image", "border", "floats")),
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
    """The library for one instruction set and one type.

    Attributes:
        name: the instruction set.
        dtype: the type, a key of :data:`DTYPES`.
        values: the type of its maps and packed weights in numpy, which has no bfloat16.
        width: floats of a vector.
        panel: output channels of a panel of packed weights.
        cache: bytes of the second-level cache of a core.
        parts_apart: whether the parts of weights are packed one after the other, as products in tiles read them.
    """

    def __init__(self, name: str, dtype: str, path: Path) -> None:
        self.name, self.dtype = name, dtype
        self._library = ctypes.CDLL(str(path))
        for function in ("foveal_width", "foveal_panel", "foveal_cache", "foveal_value_size"):
            getattr(self._library, function).restype = ctypes.c_int64
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        for function in ("foveal_pack", "foveal_pack_floats"):
            getattr(self._library, function).argtypes = [pointer, number, number, number, pointer]
        self._library.foveal_pack_depthwise.argtypes = [pointer, number, number, pointer]
        self._library.foveal_run.argtypes = [pointer, number, pointer, ctypes.c_int, pointer]
        self._library.foveal_run.restype = ctypes.c_int
        self.run = self._library.foveal_run
        self.width: int = self._library.foveal_width()
        self.panel: int = self._library.foveal_panel()
        self.cache: int = self._library.foveal_cache()
        self.parts_apart = bool(self._library.foveal_parts_apart())
        self.values = np.dtype(np.float32 if self._library.foveal_value_size() == 4 else np.uint16)

    def peak(self) -> float:
        """Floating-point operations per second that one core reaches on values in registers."""
        self._library.foveal_peak.restype = ctypes.c_double
        return self._library.foveal_peak()

    def padded(self, channels: int) -> int:
        """Channels, rounded up to whole vectors."""
        return -(-channels // self.width) * self.width

    def paired(self, channels: int) -> int:
        """Channels, rounded up to what fills whole units of 32 bits."""
        return channels + channels % (4 // self.values.itemsize)

    def pack(self, weight: NDArray[np.float32], *, floats: bool = False) -> NDArray[Any]:
        """Weights ``(outputs, taps, depth)`` in panels of output channels, as values or as floats."""
        outputs, taps, depth = weight.shape
        packed = aligned(
            self.padded(outputs) * taps * (depth if floats else self.paired(depth)),
            np.float32 if floats else self.values,
        )
        function = self._library.foveal_pack_floats if floats else self._library.foveal_pack
        function(weight.ctypes.data, outputs, taps, depth, packed.ctypes.data)
        return packed

    def pack_depthwise(self, weight: NDArray[np.float32]) -> NDArray[np.float32]:
        """Weights ``(channels, 1, K, K)`` in vectors of channels."""
        weight = np.ascontiguousarray(weight)
        channels, taps = len(weight), weight[0].size
        packed = aligned(self.padded(channels) * taps)
        self._library.foveal_pack_depthwise(weight.ctypes.data, channels, taps, packed.ctypes.data)
        return packed


def aligned(size: int, dtype: DTypeLike = np.float32) -> NDArray[Any]:
    """An uninitialised array that begins at a multiple of 64 bytes."""
    size, item = int(size), np.dtype(dtype).itemsize
    memory = np.empty(size + 64 // item, dtype)
    start = -(memory.ctypes.data // item) % (64 // item)
    return memory[start : start + size]


def processor_flags() -> set[str]:
    """Names of the instruction sets of this processor, as Linux gives them; elsewhere none are known."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return set(line.partition(":")[2].split())
    except OSError:
        pass
    return set()


def instruction_sets(*, tiles: bool = True) -> list[str]:
    """The instruction sets that this machine runs, best first.

    Args:
        tiles: whether to ask the system for the tile registers, if the processor has them. The set that needs them is
            left out if not, or if the system refuses.
    """
    machine, flags = platform.machine().lower(), processor_flags()
    found = [name for name, (machines, needed, _) in _SETS.items() if machine in machines and flags.issuperset(needed)]
    if _TILES in found and not (tiles and _request_tiles()):
        found.remove(_TILES)
    return found


@cache
def _request_tiles() -> bool:
    """Ask Linux for the tile registers, which a process gets only on request; return whether it was granted."""
    if sys.platform != "linux":
        return False
    syscall, arch_prctl, request, tile_data = ctypes.CDLL(None).syscall, 158, 0x1023, 18
    return syscall(ctypes.c_long(arch_prctl), ctypes.c_long(request), ctypes.c_long(tile_data)) == 0


def load_library(name: str = "", dtype: str = "float32") -> Library:
    """The library for an instruction set, built at first use.

    Args:
        name: the instruction set; empty: that of the variable ``FOVEAL_ISA``, or the best one of this machine.
        dtype: type of maps and of the weights of products, a key of :data:`DTYPES`. Every instruction set has both.

    Raises:
        ConfigError: an unknown type.
        DependencyError: this machine does not run that instruction set, or no compiler builds the library.
    """
    return _load(name or os.environ.get(VARIABLE, ""), dtype)


@cache
def _load(name: str, dtype: str) -> Library:
    name, path = build_library(name, dtype)
    return Library(name, dtype, path)


def build_library(name: str = "", dtype: str = "float32") -> tuple[str, Path]:
    """Build the library without loading it, as :func:`load_library` does: its instruction set and its path."""
    if dtype not in DTYPES:
        raise ConfigError(f"unknown dtype {dtype!r} of the native engine{nearest(dtype, DTYPES)}")
    usable = instruction_sets(tiles=dtype != "float32" or name == _TILES)
    if not usable or (name and name not in usable):
        raise DependencyError(
            f"the native engine: this processor does not run {name or platform.machine()!r}{nearest(name, usable)}"
        )
    vectors = next(each for each in usable if each not in _HALF)
    names = [name] if name else [each for each in usable if each in _HALF and dtype != "float32"] + [vectors]
    further = os.environ.get(FLAGS_VARIABLE, "").split()
    for each in names:
        flags = (*_FLAGS, *_SETS[each][2], *DTYPES[dtype], *further)
        try:
            return each, build("engine", "the native engine", _SOURCES, "engine.cpp", flags)
        except DependencyError:
            if each == names[-1]:  # an older compiler may not know the first ones
                raise
    raise AssertionError("at least one instruction set")


def available() -> tuple[bool, str]:
    """Whether the library is built or can be built, and the reason if not."""
    try:
        load_library()
    except (DependencyError, InputError, OSError) as error:  # InputError: the folder of the cache cannot be written
        return False, str(error)
    return True, ""

"""The engine's NEON code, cross-compiled and run under an emulator, equals its SSE code, whose vectors are as wide.

Debian: apt-get install g++-aarch64-linux-gnu qemu-user
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import foveal.engine.library
from foveal.engine.binding import Binding
from foveal.engine.engine import Engine
from foveal.engine.library import DTYPES, Op, instruction_sets
from foveal.engine.plan import Plan
from helpers.plans import random_plan

pytestmark = pytest.mark.long
PLANS = 60
COMPILER, EMULATOR = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64")


def dump(plan: Plan, x: NDArray[np.float32], path: Path, dtype: str) -> tuple[int, ...]:
    """Write the plan, bound by the SSE library, with its memory; return the shape of the result."""
    engine = Engine(plan, isa="sse", dtype=dtype)
    binding = engine.run(x)[1]
    result, (n, height, width, channels), _ = binding.outs[-1]
    out = np.zeros(n * channels * height * width, np.float32)
    regions: list[NDArray[Any]] = [*binding.keep, x, out]
    begins = np.cumsum([0, *(-(-region.nbytes // 16) * 16 for region in regions)]).tolist()

    def place(address: int | None) -> int:
        for region, begin in zip(regions, begins, strict=False):
            if address and region.ctypes.data <= address < region.ctypes.data + region.nbytes:
                return begin + address - region.ctypes.data + 1
        return 0

    binding.maps[binding.images[0]].data, binding.maps[result].data = x.ctypes.data, out.ctypes.data
    _translate(binding, place)
    header = np.array([len(binding.ops), len(binding.maps), begins[-1], begins[-2], out.size], np.int64)
    padded = (region.tobytes() + bytes(-region.nbytes % 16) for region in regions)
    path.write_bytes(b"".join([header.tobytes(), bytes(binding.ops), bytes(binding.maps), *padded]))
    return n, channels, height, width


def _translate(binding: Binding, place: Callable[[int | None], int]) -> None:
    def change(pointers: ctypes.Array[ctypes.c_void_p]) -> None:
        for i, address in enumerate(pointers):
            pointers[i] = place(address)

    for entry in binding.maps:
        entry.data = place(entry.data)
    for op in binding.ops:
        change(op.weight)
        change(op.bias)
        op.work = place(op.work)


@pytest.fixture(scope="module", params=DTYPES)
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The type, and the program for it."""
    if COMPILER is None or EMULATOR is None:
        pytest.skip(
            "aarch64-linux-gnu-g++ and qemu-aarch64 are needed: apt-get install g++-aarch64-linux-gnu qemu-user"
        )
    path = tmp_path_factory.mktemp("neon") / "run_dump"
    source, folder = Path(__file__).with_name("run_dump.cpp"), Path(foveal.engine.library.__file__).with_name("csrc")
    flags = ("-std=c++17", "-O2", "-ffp-contract=fast", "-fno-math-errno", "-static", "-pthread", "-Wno-psabi")
    subprocess.run([COMPILER, *flags, *DTYPES[request.param], "-I", folder, source, "-o", path], check=True)
    return request.param, path


@pytest.mark.skipif("sse" not in instruction_sets(), reason="the plans are bound by the SSE library")
@pytest.mark.parametrize("threads", [1, 3])
def test_neon_equals_sse(threads: int, program: tuple[str, Path], tmp_path: Path) -> None:
    dtype, path = program
    tolerance = {"float32": 1e-4, "bfloat16": 3e-2}[dtype]  # SSE has no fused multiply-add
    assert ctypes.sizeof(Op) % 8 == 0
    files, expected = [], []
    for seed in range(threads * 10_000, threads * 10_000 + PLANS):
        plan, shape = random_plan(seed)
        x = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
        files.append(tmp_path / f"{seed}.bin")
        result = Engine(plan, isa="sse", dtype=dtype)(x)
        assert dump(plan, x, files[-1], dtype)[: result.ndim] == result.shape
        expected.append(result)
    assert EMULATOR is not None  # or the fixture skips
    subprocess.run([EMULATOR, path, str(threads), *files], check=True)
    for file, one in zip(files, expected, strict=True):
        found = np.fromfile(f"{file}.out", np.float32).reshape(one.shape)
        assert np.abs(found - one).max() <= tolerance * max(np.abs(one).max(), 1e-3), file.stem

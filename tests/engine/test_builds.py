"""The engine's operations in other builds of its library: every instruction set, wider vectors, sanitizers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from foveal.engine.engine import Engine
from foveal.engine.library import DTYPES, FLAGS_VARIABLE, VARIABLE, build_library, instruction_sets
from helpers.hostile_plans import run_plans
from helpers.plans import random_plan

pytestmark = pytest.mark.long
OPERATIONS = [Path(__file__).with_name(name) for name in ("test_operations.py", "test_bfloat16.py")]
EMULATED = "-O1 -DFOVEAL_WIDTH=16 -DFOVEAL_TILES"
SANITIZERS = "-O1 -g1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=undefined"


def run_operations(**variables: str) -> None:
    """Run the tests of the operations in a process of its own, which loads another library."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *OPERATIONS]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, env={**os.environ, **variables})
    assert done.returncode == 0, (done.stdout[-3000:], done.stderr[-3000:])
    assert " passed" in done.stdout


@pytest.mark.parametrize("name", ["sse", "avx2", "avx512", "avx512bf16", "amx", "neon"])
def test_operations_with_an_instruction_set(name: str) -> None:
    if name not in instruction_sets():
        pytest.skip(f"this processor does not run {name}")
    run_operations(**{VARIABLE: name})


def test_several_instruction_sets_in_one_process() -> None:
    """Libraries of one process share no symbols: each runs its own code."""
    engines = [(name, [Engine(random_plan(seed)[0], isa=name) for seed in range(40)]) for name in instruction_sets()]
    for seed in range(40):
        x = np.random.default_rng(seed).standard_normal(random_plan(seed)[1]).astype(np.float32)
        expected = engines[0][1][seed](x)
        for name, several in engines[1:]:
            scale = max(np.abs(expected).max(), 1e-3)
            assert np.abs(several[seed](x) - expected).max() <= 1e-4 * scale, (name, seed)


def test_operations_with_vectors_of_16_floats() -> None:
    """The code for AVX-512 on a processor without it: the compiler splits its vectors."""
    run_operations(**{FLAGS_VARIABLE: "-O1 -DFOVEAL_WIDTH=16"})


def test_operations_with_emulated_tiles() -> None:
    """The code for tile registers on a processor without them: plain loops take their place."""
    run_operations(**{FLAGS_VARIABLE: EMULATED})


@pytest.fixture(params=["", EMULATED], ids=["vectors", "tiles"])
def sanitized(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Variables of a process that loads the library with sanitizers; it is built here.

    Sanitizers do not see what tile registers load, so that plain loops take their place.
    """
    compiler = shutil.which("g++")
    if compiler is None or sys.platform != "linux":
        pytest.skip("g++ on Linux is needed")
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setenv(FLAGS_VARIABLE, f"{request.param} {SANITIZERS}")
    runtime = subprocess.check_output([compiler, "-print-file-name=libasan.so"], text=True).strip()
    if not Path(runtime).is_absolute():
        pytest.skip("libasan is needed")
    for dtype in DTYPES:
        build_library(dtype=dtype)
    # Python and its libraries leave memory to the end of the process; too large requests must give no memory.
    options = "detect_leaks=0:allocator_may_return_null=1:max_allocation_size_mb=2048"
    return {"LD_PRELOAD": runtime, "ASAN_OPTIONS": options, "PYTHONMALLOC": "malloc"}


def test_operations_with_sanitizers(sanitized: dict[str, str]) -> None:
    run_operations(**sanitized)


def test_plans_with_sanitizers(sanitized: dict[str, str]) -> None:
    """Every map and every array has memory of its own here, so that each access outside of one is seen."""
    for first, dtype in ((20_000, "float32"), (21_000, "bfloat16")):
        outcomes = run_plans(first, 1000, sanitized=True, environment=sanitized, dtype=dtype)
        assert outcomes["run"] >= 500, (dtype, outcomes)

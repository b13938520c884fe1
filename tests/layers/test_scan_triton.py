"""The scan's Triton kernels: interpreted, compiled, and run if there is an NVIDIA GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from helpers.scans import ROOT, difference, gradients, rounded, scan, tensors

INTERPRETED = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from helpers import scans as t
from foveal.layers.scan import gpu
gpu.ELEMENTS = 32  # tiles of 16 tokens
for shape in ((2, 2, 5, 3, 1), (1, 4, 37, 2, 2), (1, 2, 1, 1, 1)):
    batch, channels, length, states, groups = shape
    for softplus in (True, False) if length == 5 else (True,):
        given = t.rounded(t.tensors(batch, channels, length, states, groups, shift=-3, scale=3))
        if not softplus:
            given["delta"] = given["delta"].abs() / 8
        expected = [*t.scan(given, "loop", softplus=softplus), *t.gradients(given, "loop", torch.float64, softplus)]
        for dtype, limit in ((torch.float64, 1e-13), (torch.float32, 1e-5)):
            found = [*t.scan(given, "triton", dtype, softplus), *t.gradients(given, "triton", dtype, softplus)]
            for i, (a, b) in enumerate(zip(found, expected)):
                assert t.difference(a, b) < limit, (shape, softplus, dtype, i, t.difference(a, b))
print("as the loop")
"""

COMPILED = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from foveal.layers.scan import gpu

SIZES = {"channels", "groups", "states", "length"}
constants = {"N": 2, "T": 16, "SKIP": True, "BIAS": True, "SOFTPLUS": True}
for kernel, more in ((gpu._forward, {"STARTS": False}), (gpu._forward, {"STARTS": True}), (gpu._backward, {})):
    fixed = {**constants, **more}
    types = {n: "constexpr" if n in fixed else "i32" if n in SIZES else "*fp32" for n in kernel.arg_names}
    source = ASTSource(kernel, types, {(kernel.arg_names.index(n),): value for n, value in fixed.items()})
    binary = triton.compile(source, GPUTarget("cuda", 90, 32), {"enable_fp_fusion": True})
    assert len(binary.asm["cubin"]) > 1000
print("compiled")
"""

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")


@needs_triton
def test_triton_kernels_in_the_interpreter() -> None:
    command = [sys.executable, "-c", INTERPRETED, str(ROOT / "tests")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "TRITON_INTERPRET": "1"})
    assert done.stdout == "as the loop\n", done.stderr


@pytest.mark.long
@needs_triton
def test_triton_kernels_compile_for_a_gpu(tmp_path: Path) -> None:
    """Compile to machine code without a GPU, because Triton's interpreter accepts code that its compiler refuses."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, env=environment)
    assert done.stdout == "compiled\n", done.stderr


@pytest.mark.skipif(not torch.cuda.is_available() or find_spec("triton") is None, reason="no NVIDIA GPU here")
def test_triton_kernels_on_a_gpu() -> None:
    for shape in ((2, 7, 196, 8, 1), (1, 6, 3000, 3, 2), (1, 1, 65536, 1, 1)):
        batch, channels, length, states, groups = shape
        inputs = rounded(tensors(batch, channels, length, states, groups, shift=-3, scale=3))
        expected = [*scan(inputs, "parallel"), *gradients(inputs, "parallel", torch.float64)]
        there = {name: tensor.cuda() for name, tensor in inputs.items()}
        output = [*scan(there, "auto", torch.float32), *gradients(there, "auto", torch.float32)]
        for a, b in zip(output, expected, strict=True):
            assert difference(a.cpu(), b) < 3e-6

"""The fused ReLU attention's Triton kernels: interpreted, compiled, and run if there is an NVIDIA GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from foveal.layers.linear_attention import MultiScaleLinearAttention, linear_attention
from helpers import golden
from helpers.scans import ROOT

INTERPRETED = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from foveal.layers import relu_attention_gpu as gpu
from layers.test_relu_attention_triton import check
gpu.TOKENS, gpu.SPAN = 16, 2  # several tiles and several programs per head
for shape, eps in (((2, 1, 24, 37), 1e-15), ((1, 2, 48, 16), 1e-5), ((1, 1, 60, 50), 1e-15), ((1, 2, 3, 1), 1e-5)):
    check(shape, eps, torch.float32, 3e-6)
check((1, 1, 96, 33), 1e-15, torch.bfloat16, 1e-2)
check((0, 2, 24, 8), 1e-15, torch.float32, 0)
print("as the formula")
"""

COMPILED = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from foveal.layers import relu_attention_gpu as gpu

SIZES = {"D": "i32", "length": "i32", "eps": "fp32"}
SUMS = ("context", "norm", "dcontext", "dnorm")
for kernel in (gpu._sum_keys, gpu._read, gpu._sum_slopes, gpu._gradients):
    for kind in ("*fp32", "*bf16") if kernel in (gpu._read, gpu._gradients) else ("*fp32",):
        fixed = {n: v for n, v in {"W": 16, "T": 128, "SPAN": 16}.items() if n in kernel.arg_names}
        given = {n: SIZES.get(n, "*fp32" if n in SUMS else kind) for n in kernel.arg_names}
        types = {n: "constexpr" if n in fixed else given[n] for n in kernel.arg_names}
        source = ASTSource(kernel, types, {(kernel.arg_names.index(n),): value for n, value in fixed.items()})
        binary = triton.compile(source, GPUTarget("cuda", 90, 32))
        assert len(binary.asm["cubin"]) > 1000
print("compiled")
"""

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")


def check(shape: tuple[int, int, int, int], eps: float, dtype: torch.dtype, limit: float, device: str = "cpu") -> None:
    """Compare outputs and gradients of the kernels with those of the formula in float64, for the same inputs."""
    from foveal.layers.relu_attention_operator import fused_relu_attention

    batch, heads, rows, length = shape
    given = torch.randn(shape, generator=torch.Generator().manual_seed(length)).to(dtype)
    slope = torch.randn(batch, heads, rows // 3, length).to(dtype)
    exact = given.double().requires_grad_()
    q, k, v = exact.transpose(-2, -1).split(rows // 3, dim=-1)
    expected = linear_attention(q, k, v, eps=eps).transpose(-2, -1)
    (expected * slope.double()).sum().backward()
    there = given.to(device).requires_grad_()
    output = fused_relu_attention(there, eps)
    (output * slope.to(device)).sum().backward()
    for found, reference in ((output, expected), (there.grad, exact.grad)):
        assert found is not None
        assert reference is not None
        assert found.dtype == dtype
        assert found.shape == reference.shape
        if found.numel():
            scale = float(reference.detach().abs().max()) or 1.0
            assert float((found.detach().cpu().double() - reference.detach()).abs().max()) <= limit * scale, (
                shape,
                eps,
                dtype,
            )


@needs_triton
def test_kernels_in_the_interpreter() -> None:
    command = [sys.executable, "-c", INTERPRETED, str(ROOT / "tests")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "TRITON_INTERPRET": "1"})
    assert done.stdout == "as the formula\n", done.stderr


@pytest.mark.long
@needs_triton
def test_kernels_compile_for_a_gpu(tmp_path: Path) -> None:
    """Compile to machine code without a GPU, because Triton's interpreter accepts code that its compiler refuses."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, env=environment)
    assert done.stdout == "compiled\n", done.stderr


def test_shapes_without_data() -> None:
    """Outputs and gradients have the right shapes when a graph is traced, and the layer stays in plain torch here."""
    from torch._subclasses import FakeTensorMode

    from foveal.layers.relu_attention_operator import fused_relu_attention, has_fused_kernel

    assert not has_fused_kernel(torch.zeros(1))
    with FakeTensorMode():
        heads = torch.empty(2, 3, 24, 10, dtype=torch.bfloat16, requires_grad=True)
        output = fused_relu_attention(heads, 1e-15)
        output.sum().backward()
        assert output.shape == (2, 3, 8, 10)
        assert heads.grad is not None
        assert heads.grad.dtype == torch.bfloat16


@pytest.mark.skipif(not torch.cuda.is_available() or find_spec("triton") is None, reason="no NVIDIA GPU here")
def test_kernels_on_a_gpu() -> None:
    for shape in ((2, 16, 48, 196), (1, 8, 96, 5000), (1, 3, 60, 129), (1, 1, 48, 65536)):
        check(shape, 1e-15, torch.float32, 1e-5, "cuda")
        check(shape, 1e-15, torch.bfloat16, 1e-2, "cuda")
    layer = golden.fill(MultiScaleLinearAttention(32, head_dim=16)).eval()
    x = torch.randn(2, 32, 20, 12)
    with torch.no_grad():
        expected = layer.double()(x.double())
        found = layer.float().cuda()(x.cuda()).cpu()
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()

"""Everything that needs an NVIDIA GPU, within ten minutes: tests, finiteness of large images, and speed.

python benchmarks/gpu.py [--minutes 10] [--json gpu.json]

It runs the tests of the Triton kernels; checks that outputs in float16 and bfloat16 are finite at 4096x4096; and times
plain torch, ``torch.compile``, the fused kernel and softmax attention of the same width (SDPA) for the attention of
EfficientViT and the scan of MambaVision, then whole models. Times are medians of CUDA events after a warm-up.
``--dry-run`` runs the same code at small sizes on the CPU, without kernels, to check the script itself.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import foveal
from foveal.layers import linear_attention as layers
from foveal.layers.relu_attention_operator import fused_relu_attention
from foveal.layers.scan import selective_scan
from foveal.measuring import machine

TESTS = ("tests/layers/test_relu_attention_triton.py", "tests/layers/test_scan_triton.py", "tests/layers/test_scan.py")
HEADS, WIDTH = 16, 32  #: heads of the attention and channels of each


@dataclass
class Run:
    """Where and how long to measure, and what was found."""

    device: str
    deadline: float
    size: int
    rounds: int
    report: dict[str, Any] = field(default_factory=dict)

    def late(self, what: str, seconds: float) -> bool:
        """Say that a part is left out because it may take longer than what is left."""
        if time.monotonic() + seconds < self.deadline:
            return False
        print(f"left out for lack of time: {what}", flush=True)
        return True

    def milliseconds(self, function: Callable[[], object]) -> float:
        """Median time of a call."""
        for _ in range(3):
            function()
        if self.device == "cpu":
            times = []
            for _ in range(self.rounds):
                start = time.perf_counter()
                function()
                times.append(1e3 * (time.perf_counter() - start))
            return statistics.median(times)
        pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(self.rounds)]
        for start, end in pairs:
            start.record()
            function()
            end.record()
        torch.cuda.synchronize()
        return statistics.median(start.elapsed_time(end) for start, end in pairs)


def main() -> None:
    """Run all parts and print what each found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--dry-run", action="store_true", help="small sizes on the CPU, no kernels")
    arguments = parser.parse_args()
    if not (arguments.dry_run or (torch.cuda.is_available() and find_spec("triton") is not None)):
        raise SystemExit("benchmarks/gpu.py: no NVIDIA GPU with Triton here; --dry-run checks the script on the CPU")
    device, size, rounds = ("cpu", 64, 2) if arguments.dry_run else ("cuda", 4096, 20)
    run = Run(device, time.monotonic() + 60 * arguments.minutes, size, rounds)
    name = "dry run on the CPU" if arguments.dry_run else torch.cuda.get_device_name()
    print(f"{machine.one_line()}, {name}, torch {torch.__version__}", flush=True)
    failed = False if arguments.dry_run else not test(run)
    failed |= not finite(run)
    for part in (time_attention, time_scan, time_models):
        part(run)
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"gpu": name, "machine": machine.describe(), **run.report}, indent=1) + "\n"
        )
    if failed:
        raise SystemExit(1)


def test(run: Run) -> bool:
    """Run the tests that need a GPU."""
    root = Path(__file__).parents[1]
    command = [sys.executable, "-m", "pytest", "-q", "-k", "on_a_gpu or cuda", *TESTS]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    run.report["tests"] = done.stdout.strip().splitlines()[-1:]
    print("tests:", *run.report["tests"] or [done.stderr], flush=True)
    if done.returncode:
        print(done.stdout[-4000:])
    return done.returncode == 0


@torch.inference_mode()
def finite(run: Run) -> bool:
    """Check outputs at 4096x4096 in both 16-bit types, of the bundled segmenter and of untrained models."""
    good = True
    names = ("efficientvit_b0.camvid", "efficientvit_b1:segment", "efficientvit_l1:segment", "mambavision_t:segment")
    for name in names[:1] if run.device == "cpu" else names:
        if run.late(f"finiteness of {name}", 20):
            continue
        model = build(name).to(run.device)
        image = torch.randn(1, 3, run.size, run.size, device=run.device)
        for dtype in (torch.float16, torch.bfloat16):
            output = model.to(dtype)(image.to(dtype), upsample=False)
            found = bool(torch.isfinite(output).all())
            good &= found
            print(f"finite at {run.size}x{run.size} in {dtype}: {name}: {'yes' if found else 'NO'}", flush=True)
            run.report.setdefault("finite", {})[f"{name} {dtype}"] = found
        del model
    return good


def build(name: str) -> Any:
    """A model by its weights' name, or by NAME:TASK with random weights, in evaluation mode."""
    return (foveal.create_model(*name.split(":")) if ":" in name else foveal.load_model(name)).eval()


def table(run: Run, title: str, row: str, candidates: dict[str, Callable[[], object]]) -> None:
    """Time the candidates of a row; one that fails is named and left out."""
    cells = {}
    for name, function in candidates.items():
        try:
            cells[name] = run.milliseconds(function)
        except (RuntimeError, MemoryError) as error:
            print(f"{title}, {row}: {name} failed: {str(error).splitlines()[0]}", flush=True)
    run.report.setdefault(title, {})[row] = cells
    print(f"{title}, {row}: " + ", ".join(f"{name} {ms:.3f} ms" for name, ms in cells.items()), flush=True)


def plain_attention(heads: Tensor) -> Tensor:
    """The attention in standard operations, from channel-major heads."""
    q, k, v = heads.transpose(-2, -1).split(heads.shape[2] // 3, dim=-1)
    return layers.linear_attention(q, k, v).transpose(-2, -1)


def softmax_attention(heads: Tensor) -> Tensor:
    """Softmax attention of the same heads, token-major."""
    q, k, v = (part.transpose(-2, -1).contiguous() for part in heads.chunk(3, dim=2))
    return F.scaled_dot_product_attention(q, k, v)


def with_gradients(function: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], object]:
    """A forward and a backward pass."""
    leaf = x.clone().requires_grad_()
    return lambda: torch.autograd.grad(function(leaf).sum(), leaf)


def time_attention(run: Run) -> None:
    """Time the attention of 16 heads of 32 channels for growing maps, forward and with gradients."""
    compiled = torch.compile(plain_attention, dynamic=False)
    for tokens in (64,) if run.device == "cpu" else (1024, 4096, 16384, 65536):
        for dtype in (torch.float16, torch.float32):
            if run.late(f"attention of {tokens} tokens", 30):
                return
            x = torch.randn(1, HEADS, 3 * WIDTH, tokens, device=run.device, dtype=dtype)
            forms: dict[str, Callable[[Tensor], Tensor]] = {"eager": plain_attention}
            if run.device == "cuda":
                forms |= {"compile": compiled, "kernel": lambda heads: fused_relu_attention(heads, 1e-15)}
            forms["SDPA"] = softmax_attention
            row = f"{tokens} tokens, {str(dtype).removeprefix('torch.')}"
            with torch.no_grad():
                table(run, "attention", row, {name: partial(f, x) for name, f in forms.items()})
            table(run, "attention with gradients", row, {name: with_gradients(f, x) for name, f in forms.items()})


@torch.no_grad()
def time_scan(run: Run) -> None:
    """Time the selective scan of 320 channels with 8 states; SDPA has 8 heads of 40 channels."""
    compiled = torch.compile(selective_scan, dynamic=False)
    for tokens in (64,) if run.device == "cpu" else (1024, 16384):
        if run.late(f"scan of {tokens} tokens", 60):
            return
        shapes = {"u": (1, 320, tokens), "delta": (1, 320, tokens), "A": (320, 8), "B": (1, 8, tokens)}
        given = {name: torch.randn(shape, device=run.device) for name, shape in shapes.items()}
        given |= {"A": -given["A"].abs(), "C": torch.randn_like(given["B"])}
        options: dict[str, Any] = {**given, "delta_softplus": True}
        candidates: dict[str, Callable[[], object]] = {"eager": partial(selective_scan, **options, method="chunked")}
        if run.device == "cuda":
            candidates["compile"] = partial(compiled, **options, method="chunked")
            candidates["kernel"] = partial(selective_scan, **options, method="triton")
        heads = torch.randn(1, 8, 120, tokens, device=run.device)
        candidates["SDPA"] = partial(softmax_attention, heads)
        table(run, "scan", f"{tokens} tokens, float32", candidates)


@contextmanager
def without_kernel() -> Iterator[None]:
    """Run EfficientViT's attention in plain torch."""
    original = layers.has_fused_kernel
    layers.has_fused_kernel = lambda x: False
    try:
        yield
    finally:
        layers.has_fused_kernel = original


@torch.inference_mode()
def time_models(run: Run) -> None:
    """Time whole models in float16: plain torch, compiled with CUDA graphs, and with the kernels."""
    sizes = {"efficientvit_b1:classify": (32, 224, 224), "efficientvit_b1:segment": (1, 1024, 2048)}
    sizes |= {"efficientvit_l1:segment": (1, 1024, 2048), "mambavision_t:classify": (32, 224, 224)}
    sizes |= {"vit_small:classify": (32, 224, 224)}
    for name, (batch, height, width) in sizes.items():
        if run.device == "cpu":
            batch, height, width = 1, 32, 64
        if run.late(name, 90):
            return
        dtype = torch.float32 if run.device == "cpu" else torch.float16
        model = build(name).to(run.device, dtype)
        image = torch.randn(batch, 3, height, width, device=run.device, dtype=dtype)
        row = f"{name}, {batch}x{height}x{width}"
        with without_kernel():
            candidates: dict[str, Callable[[], object]] = {"eager": partial(model, image)}
            if run.device == "cuda":
                compiled = torch.compile(model, mode="reduce-overhead", fullgraph=True)
                candidates["compile"] = partial(compiled, image)
            table(run, "models", row, candidates)
        if run.device == "cuda":
            torch.compiler.reset()
            compiled = torch.compile(model, mode="reduce-overhead", fullgraph=True)
            candidates = {"kernel": partial(model, image), "kernel, compile": partial(compiled, image)}
            table(run, "models with kernels", row, candidates)


if __name__ == "__main__":
    main()

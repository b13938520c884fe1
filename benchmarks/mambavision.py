"""Time MambaVision-T on the CPU with and without its scan, and networks of its size from timm.

Eager torch, float32, random weights. "without scan" is the same network in which the scan returns its input: no faster
scan could save more. Candidates take turns in one process; a ratio is the median of the round-by-round ratios of a
candidate's time over MambaVision-T's.

OMP_NUM_THREADS=1 python benchmarks/mambavision.py [--batches 1 8] [--threads 1] [--rounds 15] [--json mambavision.json]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import timm
import torch
from torch import Tensor

import foveal
from foveal.layers import mamba_mixer
from foveal.measuring import machine
from foveal.measuring.benchmark import interleaved, ratio

NAME = "mambavision_t"
PEERS = ("deit_small_patch16_224", "convnext_tiny", "swin_tiny_patch4_window7_224")


def main() -> None:
    """Measure each batch and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    models = {NAME: foveal.create_model(NAME).eval()}
    models |= {name: timm.create_model(name, pretrained=False).eval() for name in PEERS}
    rows = [measure(models, batch, arguments.rounds) for batch in arguments.batches]
    report = {"size": [224, 224], "threads": arguments.threads, "rounds": arguments.rounds, "rows": rows}
    if arguments.json:
        arguments.json.write_text(json.dumps({**report, "machine": machine.describe()}, indent=1) + "\n")
    versions = f"torch {torch.__version__}, timm {timm.__version__}"
    print(f"224x224, {machine.one_line()}, {versions}, threads: {arguments.threads}, {arguments.rounds} rounds\n")
    print("| batch | network | params | ms | ratio |\n|---|---|---|---|---|")
    for row in rows:
        for name, ms in row["ms"].items():
            params = sum(p.numel() for p in models.get(name, models[NAME]).parameters())
            print(f"| {row['batch']} | {name} | {params / 1e6:.1f} M | {ms:.1f} | {row['ratio'][name]:.2f} |")


def measure(models: dict[str, torch.nn.Module], batch: int, rounds: int) -> dict:
    """Measure times and ratios at one batch size."""
    image = torch.randn(batch, 3, 224, 224)

    def run(model: torch.nn.Module) -> Callable[[], Tensor]:
        return lambda: model(image)

    candidates: dict[str, Callable[[], Tensor]] = {name: run(model) for name, model in models.items()}
    candidates |= {f"{NAME} without scan": without_scan(candidates[NAME])}
    with torch.inference_mode():
        times = interleaved(candidates, rounds=rounds, warmup=2)
    return {
        "batch": batch,
        "ms": {name: round(1e3 * float(np.median(seconds)), 2) for name, seconds in times.items()},
        "ratio": {name: round(ratio(seconds, times[NAME]), 3) for name, seconds in times.items()},
    }


def without_scan(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """``run`` with scans that return their input."""

    def run_without() -> Tensor:
        scan = mamba_mixer.selective_scan
        mamba_mixer.selective_scan = lambda u, *_, **__: u
        try:
            return run()
        finally:
            mamba_mixer.selective_scan = scan

    return run_without


if __name__ == "__main__":
    main()

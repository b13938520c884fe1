"""Time MambaVision-T on the CPU with and without its scan, and networks of its size from timm.

Eager torch, float32, random weights. "without scan" is the same network in which the scan returns its input: no faster
scan could save more. Candidates take turns in one process; a ratio is the median of the round-by-round ratios of a
candidate's time over MambaVision-T's.

OMP_NUM_THREADS=1 python benchmarks/mambavision.py [--batches 1 8] [--threads 1] [--rounds 15]
    [--rows FILE.jsonl] [--page FILE.md]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import timm
import torch
from measured_tables import parse, parser, write_tables
from torch import Tensor

import foveal
from foveal.layers import mamba_mixer
from foveal.measuring.benchmark import interleaved, ratio
from foveal.measuring.machine import one_line
from foveal.measuring.page import markdown
from foveal.measuring.row_file import Row, RowFile

NAME = "mambavision_t"
PEERS = ("deit_small_patch16_224", "convnext_tiny", "swin_tiny_patch4_window7_224")


KIND = "mambavision"  # of the rows
HEADER = ("threads", "batch", "network", "params", "ms", "ratio")


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--rounds", type=int, default=15)
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    models = {NAME: foveal.create_model(NAME).eval()}
    models |= {name: timm.create_model(name, pretrained=False).eval() for name in PEERS}
    rows = RowFile(options.rows)
    print(f"224x224, {one_line()}, torch {torch.__version__}, timm {timm.__version__}, {options.threads} threads\n")
    for batch in options.batches:
        key = {"batch": batch, "threads": options.threads}
        if rows.find(KIND, key) is None:
            rows.add({"kind": KIND, "key": key, **measure(models, batch, options.rounds)})
    print(table(rows.rows))
    if options.page:
        write_page(options.rows, options.page)


def write_page(rows: Path, page: Path) -> None:
    """Write the tables of all rows into a page."""
    write_tables("mambavision", rows, page, ("foveal", "torch", "timm"), table)


def table(rows: Sequence[Row]) -> str:
    """A line for each network of each row, in Markdown."""
    lines = []
    for row in rows:
        setting = (str(row["key"]["threads"]), str(row["key"]["batch"]))
        for name, ms in row["ms"].items():
            cells = (f"{row['params'][name] / 1e6:.1f} M", f"{ms:.1f}", f"{row['ratio'][name]:.2f}")
            lines.append((*setting, name, *cells))
    return markdown([HEADER, *lines])


def measure(models: dict[str, torch.nn.Module], batch: int, rounds: int) -> Row:
    """Measure times and ratios at one batch size."""
    image = torch.randn(batch, 3, 224, 224)

    def run(model: torch.nn.Module) -> Callable[[], Tensor]:
        return lambda: model(image)

    candidates: dict[str, Callable[[], Tensor]] = {name: run(model) for name, model in models.items()}
    candidates |= {f"{NAME} without scan": without_scan(candidates[NAME])}
    with torch.inference_mode():
        times = interleaved(candidates, rounds=rounds, warmup=2)
    params = {name: sum(p.numel() for p in models.get(name, models[NAME]).parameters()) for name in candidates}
    return {
        "rounds": rounds,
        "params": params,
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

"""Time the forms of the selective scan and softmax attention of the same width on the CPU, for 196 to 65,536 tokens.

One image, 160 channels, 8 states, as in MambaVision-T; float32, no gradients. "loop" is the plain loop in float32 (the
method "loop" computes in float64 and is slower). Candidates take turns; where the sequence is short, a turn is several
runs. A speedup is the median of the round-by-round ratios. With one thread, times are CPU times, which a busy machine
distorts less. Errors are the largest difference from the loop in float64 over its largest value, on the first channels.

OMP_NUM_THREADS=1 python benchmarks/scan.py [--lengths 196 1024] [--threads 1] [--json scan.json]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.layers.scan import reference, selective_scan
from foveal.measuring import machine
from foveal.measuring.benchmark import interleaved, ratio

CHANNELS, STATES, HEADS = 160, 8, 4
ROUNDS = {196: 15, 1024: 9, 4096: 7, 16384: 3, 65536: 1}
RUNS = {196: 20, 1024: 3}  # runs of one turn
FORMS = ("parallel", "chunked", "kernel")
CHECKED = 4  # channels whose errors are measured


def main() -> None:
    """Measure each length and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--lengths", type=int, nargs="+", default=list(ROUNDS), metavar="L")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{machine.one_line()}, torch {torch.__version__}, threads: {arguments.threads}; milliseconds\n")
    columns = ["tokens", "loop", *FORMS, "attention", "loop / kernel", "attention / kernel", "us / token"]
    print(table_row([*columns, *(f"error of {form}" for form in FORMS)]))
    print(table_row(["---"] * (len(columns) + len(FORMS))))
    rows = []
    for length in arguments.lengths:
        with torch.no_grad():
            row = measure(length)
        rows.append(row)
        cells = [f"{length:,}", *(f"{row['ms'][name]:.3g}" for name in ("loop", *FORMS, "attention"))]
        cells += [f"{row['speedup'][name]:.3g}x" for name in ("loop", "attention")]
        cells += [f"{1e3 * row['ms']['kernel'] / length:.2f}", *(f"{row['error'][form]:.1e}" for form in FORMS)]
        print(table_row(cells), flush=True)
    if arguments.json:
        report = {"channels": CHANNELS, "states": STATES, "threads": arguments.threads, "machine": machine.describe()}
        arguments.json.write_text(json.dumps({**report, "rows": rows}, indent=1) + "\n")


def table_row(cells: list[str]) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def measure(length: int) -> dict:
    """Measure times, speedups of the kernel, and errors at one length."""
    u, delta, A, B, C, D, bias = inputs(length)
    q, k, v = (torch.randn(1, HEADS, length, CHANNELS // HEADS) for _ in range(3))

    def loop() -> Tensor:
        return reference.loop(u, F.softplus(delta + bias[:, None]), A, B[:, None], C[:, None])[0] + u * D[:, None]

    def form(method: str) -> Callable[[], Tensor]:
        return lambda: selective_scan(u, delta, A, B, C, D, delta_bias=bias, delta_softplus=True, method=method)

    candidates: dict[str, Callable[[], object]] = {"loop": loop, **{method: form(method) for method in FORMS}}
    candidates["attention"] = lambda: F.scaled_dot_product_attention(q, k, v)
    rounds = next((rounds for tokens, rounds in ROUNDS.items() if length <= tokens), 1)
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    runs = RUNS.get(length, 1)
    turns = {name: lambda run=run: [run() for _ in range(runs)] for name, run in candidates.items()}
    times = interleaved(turns, rounds=rounds, warmup=1 if length <= 4096 else 0, clock=clock)
    return {
        "tokens": length,
        "rounds": rounds,
        "ms": {name: round(1e3 * float(np.median(seconds)) / runs, 4) for name, seconds in times.items()},
        "speedup": {name: round(ratio(times[name], times["kernel"]), 2) for name in ("loop", "attention")},
        "error": {method: error(form(method)(), (u, delta, A, B, C, D, bias)) for method in FORMS},
    }


def inputs(length: int) -> tuple[Tensor, ...]:
    """u, delta, A, B, C, D and the bias of the steps: A and D as in a new model, the rest normally distributed."""
    generator = torch.Generator().manual_seed(length)
    u, delta = (torch.randn(1, CHANNELS, length, generator=generator) for _ in range(2))
    B, C = (torch.randn(1, STATES, length, generator=generator) for _ in range(2))
    A = -torch.arange(1.0, STATES + 1).repeat(CHANNELS, 1)
    return u, delta, A, B, C, torch.ones(CHANNELS), torch.randn(CHANNELS, generator=generator)


def error(y: Tensor, tensors: tuple[Tensor, ...]) -> float:
    """Largest difference from the float64 loop over its largest value, on the first channels."""
    u, delta, A, B, C, D, bias = (tensor.double() for tensor in tensors)
    u, delta = u[:, :CHECKED], delta[:, :CHECKED]
    A, D, bias = A[:CHECKED], D[:CHECKED], bias[:CHECKED]
    expected = selective_scan(u, delta, A, B, C, D, delta_bias=bias, delta_softplus=True, method="loop")
    return float((y[:, :CHECKED] - expected).abs().max() / expected.abs().max())


if __name__ == "__main__":
    main()

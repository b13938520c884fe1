"""Time the forms of the selective scan and softmax attention of the same width on the CPU, for 196 to 65,536 tokens.

One image, 160 channels, 8 states, as in MambaVision-T; float32, no gradients. "loop" is the plain loop in float32 (the
method "loop" computes in float64 and is slower). Candidates take turns; where the sequence is short, a turn is several
runs. A speedup is the median of the round-by-round ratios. With one thread, times are CPU times, which a busy machine
distorts less. Errors are the largest difference from the loop in float64 over its largest value, on the first channels.

OMP_NUM_THREADS=1 python benchmarks/scan.py [--lengths 196 1024] [--threads 1] [--rows FILE.jsonl] [--page FILE.md]
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from measured_tables import parse, parser, write_tables
from torch import Tensor

from foveal.layers.scan import reference, selective_scan
from foveal.measuring.benchmark import interleaved, ratio
from foveal.measuring.machine import one_line
from foveal.measuring.page import markdown
from foveal.measuring.row_file import Row, RowFile

CHANNELS, STATES, HEADS = 160, 8, 4
ROUNDS = {196: 15, 1024: 9, 4096: 7, 16384: 3, 65536: 1}
RUNS = {196: 20, 1024: 3}  # runs of one turn
FORMS = ("parallel", "chunked", "kernel")
CHECKED = 4  # channels whose errors are measured


KIND = "scan"  # of the rows
HEADER = (
    *("threads", "tokens", "loop", *FORMS, "softmax attention", "loop / kernel", "attention / kernel"),
    *("kernel, us / token", "largest error of the forms"),
)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--lengths", type=int, nargs="+", default=list(ROUNDS), metavar="L")
    arguments.add_argument("--threads", type=int, default=1)
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    rows = RowFile(options.rows)
    print(f"{one_line()}, torch {torch.__version__}, threads: {options.threads}; milliseconds", flush=True)
    for length in options.lengths:
        key = {"tokens": length, "threads": options.threads}
        if rows.find(KIND, key) is None:
            with torch.no_grad():
                rows.add({"kind": KIND, "key": key, **measure(length)})
            print(f"{length} tokens", flush=True)
    print(table(rows.rows))
    if options.page:
        write_page(options.rows, options.page)


def write_page(rows: Path, page: Path) -> None:
    """Write the tables of all rows into a page."""
    write_tables("scan", rows, page, ("foveal", "torch"), table)


def table(rows: Sequence[Row]) -> str:
    """The rows in the order of their lengths, in Markdown."""
    return markdown(
        [HEADER, *map(cells_of, sorted(rows, key=lambda row: (row["key"]["threads"], row["key"]["tokens"])))]
    )


def cells_of(row: Row) -> tuple[str, ...]:
    length, ms = row["key"]["tokens"], row["ms"]
    times = [number(ms[name]) for name in ("loop", *FORMS, "attention")]
    speedups = [f"{number(row['speedup'][name])}x" for name in ("loop", "attention")]
    per_token = f"{1e3 * ms['kernel'] / length:.2f}"
    return str(row["key"]["threads"]), f"{length:,}", *times, *speedups, per_token, f"{max(row['error'].values()):.1e}"


def number(value: float) -> str:
    """Three digits, or all digits before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def measure(length: int) -> Row:
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

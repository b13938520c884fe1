"""Speed of models after ``foveal.optimize`` over their speed before it, on the CPU, and the change of their outputs.

python benchmarks/optimize.py [--models efficientvit_b1:classify:224x224 ...] [--threads 1] [--cpu-time]
    [--rows FILE.jsonl] [--page FILE.md]

With one thread and fewer than 16 images torch computes 1x1 convolutions by MKL, with more threads by oneDNN, so the
speed before depends on the number of threads even on one core: give ``--threads 2`` on a pinned core for the second
case. ``--cpu-time`` leaves out the time that other processes ran, where the machine is busy; it is for one core.
``--keep-memory`` makes glibc keep freed memory for both sides: maps of megabytes otherwise cost a page fault for every
4 KiB in each layer.
"""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from measured_tables import parse, parser, write_tables

import foveal
from foveal.measuring.benchmark import interleaved, ratio
from foveal.measuring.machine import one_line
from foveal.measuring.page import markdown
from foveal.measuring.row_file import Row, RowFile

MODELS = (
    "efficientvit_b1:classify:224x224",
    "efficientvit_b1:segment:512x1024",
    "efficientvit_b3:classify:224x224",
    "mambavision_t:classify:224x224",
    "vit_small:classify:224x224",
    "efficientvit_l1:classify:224x224",
    "mobilenetv3_large_100:classify:224x224",
)
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_memory() -> None:
    """Make glibc serve large tensors from memory that it keeps."""
    libc = ctypes.CDLL("libc.so.6")
    for parameter, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 256 << 20)):
        if libc.mallopt(parameter, value) != 1:
            raise SystemExit("this libc has no mallopt: leave out --keep-memory")


KIND = "optimize"  # of the rows
HEADER = ("model", "task", "input", "as built", "optimised", "ratio", "change of the outputs")


@torch.inference_mode()
def compare(name: str, rounds: int, cpu_time: bool, explain: bool) -> Row:
    """Time both models in turns; the ratio is the median of the round-by-round ratios."""
    model_name, task, size = name.split(":")
    torch.manual_seed(0)
    model = foveal.create_model(model_name, task).eval()
    fast = foveal.optimize(model)
    image = torch.randn(1, 3, *map(int, size.split("x")))
    expected = model(image)
    change = (fast(image) - expected).abs().max() / expected.abs().max()
    runs = {"before": lambda: model(image), "after": lambda: fast(image)}
    times = interleaved(runs, rounds=rounds, clock=time.process_time if cpu_time else time.perf_counter)
    if explain:
        print(fast.explain())  # pyright: ignore[reportCallIssue]
    medians = {side: 1e3 * statistics.median(found) for side, found in times.items()}
    return {"ms": medians, "ratio": ratio(times["before"], times["after"]), "change": float(change), "rounds": rounds}


def cells_of(row: Row) -> tuple[str, ...]:
    times = [f"{row['ms'][side]:.1f} ms" for side in ("before", "after")]
    return (*row["key"]["model"].split(":"), *times, f"{row['ratio']:.2f}", f"{row['change']:.1e}")


def table(rows: Sequence[Row]) -> str:
    """The rows of each setting, in Markdown."""
    parts = []
    for setting in dict.fromkeys(map(setting_of, rows)):
        parts += [
            f"With {setting}:",
            markdown([HEADER, *(cells_of(row) for row in rows if setting_of(row) == setting)]),
        ]
    return "\n\n".join(parts)


def setting_of(row: Row) -> str:
    key = row["key"]
    threads = f"{key['threads']} thread{'s' * (key['threads'] > 1)}"
    options = ("processor time" if key["cpu_time"] else "", "memory kept" if key["keep_memory"] else "")
    return ", ".join(filter(None, (threads, *options)))


def write_page(rows: Path, page: Path) -> None:
    """Write the tables of all rows into a page."""
    write_tables("optimize", rows, page, ("foveal", "torch"), table)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--models", nargs="+", default=MODELS, metavar="NAME:TASK:HxW")
    arguments.add_argument("--rounds", type=int, default=20)
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--cpu-time", action="store_true", help="time of this process only")
    arguments.add_argument("--keep-memory", action="store_true", help="keep freed memory, for both sides")
    arguments.add_argument("--explain", action="store_true", help="print what was done to every model that is measured")
    options = parse(arguments)
    rows = RowFile(options.rows)
    torch.set_num_threads(options.threads)
    if options.keep_memory:
        keep_memory()
    capability = torch.backends.cpu.get_cpu_capability()
    print(f"{one_line()}, {capability}, torch {torch.__version__}, {options.threads} threads", end="")
    print(f"{', CPU time' if options.cpu_time else ''}{', memory kept' if options.keep_memory else ''}")
    for name in options.models:
        key = {"model": name} | {option: getattr(options, option) for option in ("threads", "cpu_time", "keep_memory")}
        row = rows.find(KIND, key)
        if row is None:
            measured = compare(name, options.rounds, options.cpu_time, options.explain)
            rows.add(row := {"kind": KIND, "key": key, **measured})
        print("  ".join(cells_of(row)), flush=True)
    if options.page:
        write_page(options.rows, options.page)


if __name__ == "__main__":
    main()

"""Speed of models after ``foveal.optimize`` over their speed before it, on the CPU, and the change of their outputs.

taskset -c 1 python benchmarks/optimize.py [--models efficientvit_b1:classify:224x224 ...] [--threads 1] [--cpu-time]

With one thread and fewer than 16 images torch computes 1x1 convolutions by MKL, with more threads by oneDNN, so the
speed before depends on the number of threads even on one core: give ``--threads 2`` on a pinned core for the second
case. ``--cpu-time`` leaves out the time that other processes ran, where the machine is busy; it is for one core.
``--keep-memory`` makes glibc keep freed memory for both sides: maps of megabytes otherwise cost a page fault for every
4 KiB in each layer.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import time

import torch

import foveal
from foveal.measuring import machine
from foveal.measuring.benchmark import interleaved, ratio

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


@torch.inference_mode()
def compare(name: str, rounds: int, cpu_time: bool, explain: bool) -> None:
    """Time both models in turns and print the median of the round-by-round ratios."""
    model_name, task, size = name.split(":")
    torch.manual_seed(0)
    model = foveal.create_model(model_name, task).eval()
    fast = foveal.optimize(model)
    image = torch.randn(1, 3, *map(int, size.split("x")))
    expected = model(image)
    change = (fast(image) - expected).abs().max() / expected.abs().max()
    runs = {"before": lambda: model(image), "after": lambda: fast(image)}
    times = interleaved(runs, rounds=rounds, clock=time.process_time if cpu_time else time.perf_counter)
    before, after = (1e3 * statistics.median(times[key]) for key in ("before", "after"))
    speed = ratio(times["before"], times["after"])
    print(f"{name:42} {before:8.1f} ms {after:8.1f} ms  {speed:.2f}x  outputs moved {change:.1e}", flush=True)
    if explain:
        print(fast.explain())  # pyright: ignore[reportCallIssue]


def main() -> None:
    """Read the options and compare every model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="NAME:TASK:HxW")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cpu-time", action="store_true", help="time of this process only")
    parser.add_argument("--keep-memory", action="store_true", help="keep freed memory, for both sides")
    parser.add_argument("--explain", action="store_true", help="print what was done to every model")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.keep_memory:
        keep_memory()
    capability = torch.backends.cpu.get_cpu_capability()
    print(f"{machine.one_line()}, {capability}, torch {torch.__version__}, {arguments.threads} threads", end="")
    print(f"{', CPU time' if arguments.cpu_time else ''}{', memory kept' if arguments.keep_memory else ''}")
    for name in arguments.models:
        compare(name, arguments.rounds, arguments.cpu_time, arguments.explain)


if __name__ == "__main__":
    main()

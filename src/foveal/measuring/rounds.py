"""Time single candidates, and say how far the ratios of times that were taken in turn can be trusted."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..timing import K as K
from ..timing import interleaved as interleaved
from ..timing import ratio as ratio

if TYPE_CHECKING:
    import torch

#: Seconds that the runs of one candidate in one round take at least.
TURN = 0.05
#: Probability with which the median of the ratios lies within the noise bound.
CONFIDENCE = 0.99
#: Part of the noise bound that more rounds do not lower: a model that is loaded twice lies at other addresses, which
#: made up to 3 % of difference (EfficientViT-B0 with ONNX Runtime, 14 pairs, each compared in both orders).
_LOADING = 0.03


@dataclass(frozen=True)
class Work:
    """A function that is timed.

    Attributes:
        run: runs it once; on an accelerator it may return before the device has finished.
        device: the accelerator that it runs on; ``None``: the work is done when ``run`` returns.
    """

    run: Callable[[], object]
    device: torch.device | None = None

    def finish(self) -> object:
        """Run once and wait for the device."""
        output = self.run()
        if self.device is not None:
            import torch

            torch.accelerator.synchronize(self.device)
        return output

    def seconds(self, clock: Callable[[], float] = time.perf_counter) -> float:
        """Run once and measure: between two events on an NVIDIA GPU, else by the clock, until the device is done."""
        if self.device is not None and self.device.type == "cuda":
            return self._between_events()
        started = clock()
        self.finish()
        return clock() - started

    def turn(self) -> list[float]:
        """Seconds of the runs of one turn: one run, or as many as take :data:`TURN` seconds together.

        On a busy machine the scheduler interrupts some of several short runs, and their median leaves those out.
        """
        times = [self.seconds()]
        while sum(times) < TURN:
            times.append(self.seconds())
        return times

    def _between_events(self) -> float:
        import torch

        with torch.cuda.device(self.device):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            self.run()
            end.record()
            end.synchronize()
            return start.elapsed_time(end) / 1e3


def warm_up(measure: Callable[[], float], *, window: int = 10, tolerance: float = 0.02, limit: float = 10.0) -> float:
    """Run until the time is steady: until the medians of two windows of runs, one after the other, are the same.

    A GPU lowers its clock when it has no work, and raises it over the first seconds of work.

    Args:
        measure: runs once and returns its seconds.
        window: runs in a window.
        tolerance: relative difference of the medians that counts as the same.
        limit: seconds of runs after which it stops anyway.

    Returns:
        The last relative difference; above ``tolerance`` the time was not steady within the limit.
    """
    earlier = [measure() for _ in range(window)]
    spent = sum(earlier)
    while True:
        later = [measure() for _ in range(window)]
        spent += sum(later)
        change = abs(float(np.median(later)) / float(np.median(earlier)) - 1)
        if change <= tolerance or spent >= limit:
            return change
        earlier = later


def noise_bound(times: Sequence[float], reference: Sequence[float]) -> float | None:
    """How far :func:`ratio` may be from what more rounds would give.

    The larger side of the interval between two of the sorted ratios that holds their median with a probability of
    :data:`CONFIDENCE`, whatever their distribution (fewer than eight rounds: between the smallest and the largest), and
    a part of the ratio for what differs each time that a model is loaded. The ratio of a candidate that is given twice
    differs from 1 by less.

    Returns:
        The bound, on the scale of the ratio; ``None`` after a single round.
    """
    ratios = np.sort(np.divide(times, reference))
    count = len(ratios)
    if count < 2:
        return None
    rank = _lower_rank(count)
    middle = float(np.median(ratios))
    return float(max(middle - ratios[rank], ratios[count - 1 - rank] - middle)) + _LOADING * middle


def _lower_rank(count: int) -> int:
    """Largest number of ratios that can be left out on each side of the sorted ones for :data:`CONFIDENCE`.

    The median of the distribution is below the (r+1)-th of n values with the probability that at most r of n fair coins
    show heads (David and Nagaraja, Order Statistics, section 7.1).
    """
    below, rank = 0.0, -1
    while True:
        below += math.comb(count, rank + 1) / 2**count
        if 2 * below > 1 - CONFIDENCE:
            return max(rank, 0)
        rank += 1


@contextmanager
def torch_threads_kept() -> Iterator[None]:
    """Give torch its number of threads back: it holds for the whole process, and measurements change it."""
    torch = sys.modules.get("torch")
    threads = None if torch is None else torch.get_num_threads()
    try:
        yield
    finally:
        if torch is not None:
            torch.set_num_threads(threads)

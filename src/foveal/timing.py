"""Time candidates in turn, so that a drift of the machine's speed affects all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np

K = TypeVar("K", bound=Hashable)


def interleaved(
    candidates: Mapping[K, Callable[[], object]],
    *,
    rounds: int = 20,
    warmup: int = 3,
    clock: Callable[[], float] = time.perf_counter,
    after: Callable[[], object] = lambda: None,
    before: Callable[[K], object] = lambda name: None,
    seconds: Callable[[K], float] | None = None,
) -> dict[K, list[float]]:
    """Run every candidate once per round, starting with another one each time.

    After each candidate has started a round, the order is reversed, so that every candidate follows each of its
    neighbours equally often: what runs first leaves the caches and the processor's clock to the next.

    Args:
        candidates: functions to run, by name.
        rounds: timed runs of each.
        warmup: runs of each before that.
        clock: gives seconds; ``time.process_time`` leaves out the time of other processes, for candidates of one
            thread.
        after: called after every run, untimed, for example to show progress.
        before: called with the name before every run, untimed, for example to set the number of threads.
        seconds: runs a candidate and returns its time, for work that the clock cannot measure; default: the clock.

    Returns:
        Seconds per candidate, one entry per round, so that ratios can be taken round by round.
    """
    names = list(candidates)

    def by_clock(name: K) -> float:
        started = clock()
        candidates[name]()
        return clock() - started

    measure = seconds or by_clock
    for _ in range(warmup):
        for name in names:
            before(name)
            candidates[name]()
            after()
    times: dict[K, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        cycle, shift = divmod(turn, len(names))
        order = names[shift:] + names[:shift]
        for name in reversed(order) if cycle % 2 else order:
            before(name)
            times[name].append(measure(name))
            after()
    return times


def ratio(times: Sequence[float], reference: Sequence[float]) -> float:
    """Median of the round-by-round ratios."""
    return float(np.median(np.divide(times, reference)))

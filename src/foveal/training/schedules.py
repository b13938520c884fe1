"""The schedules of the learning rate: how it falls after it has risen to its peak. A new one is a line of the table."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

_POWER = 0.9  # of DeepLab's schedule, arXiv 1606.00915, section 4.2
_STEPS, _FACTOR = (2 / 3, 8 / 9), 0.1  # of Detectron's 1x schedule: at 60,000 and 80,000 of 90,000 steps


class Schedule(NamedTuple):
    """A schedule.

    Attributes:
        help: how the rate falls.
        share: share of the peak after ``passed`` of ``total`` steps, 0 <= passed <= total and total >= 1.
    """

    help: str
    share: Callable[[int, int], float]


SCHEDULES: Mapping[str, Schedule] = {
    "cosine": Schedule("as a half cosine to 0", lambda n, total: 0.5 + 0.5 * math.cos(math.pi * n / total)),
    "poly": Schedule(f"as the remaining share of the steps to the power {_POWER}", lambda n, t: (1 - n / t) ** _POWER),
    "step": Schedule(
        f"to a tenth after {_STEPS[0]:.0%} and again after {_STEPS[1]:.0%} of the steps",
        lambda n, total: _FACTOR ** sum(n >= share * total for share in _STEPS),
    ),
    "linear": Schedule("linearly to 0", lambda n, total: 1 - n / total),
    "constant": Schedule("not at all", lambda n, total: 1.0),
}


def learning_rate(step: int, steps: int, warmup: float, schedule: str = "cosine") -> float:
    """Share of the peak learning rate: it rises linearly over ``warmup`` of the steps, then falls by ``schedule``."""
    rise = max(1, round(steps * warmup))
    if step < rise:
        return (step + 1) / rise
    total = max(1, steps - rise)
    return SCHEDULES[schedule].share(min(step - rise, total), total)

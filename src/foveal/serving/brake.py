"""Slows down answers to requests that no correct client sends, so that a flood of them costs little processor time."""

from __future__ import annotations

import time
from collections.abc import Callable

RATE = 20.0  #: such answers per second
BURST = 40  #: answers without a pause after a quiet time
LONGEST = 4.0  #: seconds of a pause, below the seconds that a client has for a head


class Brake:
    """Spreads answers over time; one for all connections of a service.

    The clients of a flood wait for their answers, and most of them send the next request only then. Waiting connections
    cost nothing but their place. Answers are not delayed per address: behind a proxy all clients have the same one.

    Args:
        clock: seconds; another one in tests.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next = 0.0  # when the next answer is due at RATE answers per second

    def pause(self) -> float:
        """Seconds that the answer to one more wrong request has to wait."""
        now = self._clock()
        self._next = max(self._next, now - BURST / RATE) + 1 / RATE
        seconds = self._next - now
        if seconds > LONGEST:
            self._next = now + LONGEST
        return min(max(0.0, seconds), LONGEST)

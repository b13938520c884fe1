"""Record SIGTERM and Ctrl-C, so that training can save before it ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def interrupts() -> Iterator[Callable[[], int]]:
    """Record SIGTERM and SIGINT instead of acting on them.

    Yields:
        A function that returns the number of the latest signal, 0 before the first one.
    """
    received = 0

    def record(number: int, frame: Any) -> None:
        nonlocal received
        received = number

    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0  # Python sets signal handlers in the main thread only
        return
    before = {number: signal.signal(number, record) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""SIGTERM and Ctrl-C, noted instead of obeyed, so that a run can save before it ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def interrupts() -> Iterator[Callable[[], int]]:
    """While inside, SIGTERM and SIGINT are only noted: the number of the last one, 0 before."""
    received = 0

    def note(number: int, frame: Any) -> None:
        nonlocal received
        received = number

    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0  # only the main thread may set handlers
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""Live progress with time left, on standard error: bars on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

_PLAIN_SECONDS = 10.0  # between lines where there is no terminal


class Progress:
    """A console for one command; ``enabled=False`` prints nothing (processes other than the first)."""

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled
        self.console = Console(stderr=True, quiet=not enabled)

    def note(self, text: str) -> None:
        """Print one line above the bar."""
        self.console.print(text, highlight=False, markup=False, emoji=False, soft_wrap=True)

    @contextmanager
    def bar(self, name: str, total: int, done: int = 0) -> Iterator[Bar]:
        """Show progress through ``total`` items, ``done`` of them behind us."""
        if self.enabled and self.console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            with RichProgress(
                *columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=self.console
            ) as rich:
                task = rich.add_task(name, total=total, completed=done)
                yield Bar(lambda text: rich.update(task, advance=1, description=f"{name} {text}".strip()))
        else:
            yield _PlainBar(self, name, total, done) if self.enabled else Bar(lambda text: None)


class Bar:
    """What :meth:`Progress.bar` hands out."""

    def __init__(self, advance) -> None:
        self.advance_by_one = advance

    def advance(self, text: str = "") -> None:
        """One more item is done; ``text`` stands beside the bar."""
        self.advance_by_one(text)


class _PlainBar(Bar):
    def __init__(self, progress: Progress, name: str, total: int, done: int) -> None:
        super().__init__(self._step)
        self.progress, self.name, self.total, self.done = progress, name, total, done
        self.first, self.started = done, time.monotonic()
        self.shown = self.started

    def _step(self, text: str) -> None:
        self.done += 1
        now = time.monotonic()
        if now - self.shown < _PLAIN_SECONDS:
            return
        self.shown = now
        left = (now - self.started) / (self.done - self.first) * (self.total - self.done)
        print(f"{self.name} {self.done}/{self.total} {text} left {_clock(left)}", file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"

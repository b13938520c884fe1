"""Progress with the time left, on standard error: a bar on a terminal, otherwise a plain line every ten seconds."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING

from .text import notice, printable

if TYPE_CHECKING:
    from rich.console import Console

_PLAIN_SECONDS = 10.0  # between two plain lines


class Progress:
    """The progress display of one command; with ``enabled=False``, as in all processes but the first, it is silent."""

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled

    @cached_property
    def terminal(self) -> Console | None:
        """The terminal of standard error, if it is one. Only then rich is imported, which takes a tenth of a second."""
        forced = os.environ.get("FORCE_COLOR") or os.environ.get("TTY_COMPATIBLE")  # rich obeys these
        if not self.enabled or sys.stderr is None or not (forced or sys.stderr.isatty()):
            return None
        from rich.console import Console

        console = Console(stderr=True)
        return console if console.is_terminal else None

    def note(self, text: str) -> None:
        """Print one line above the bar."""
        if self.terminal is not None:
            self.terminal.print(printable(text), highlight=False, markup=False, emoji=False, soft_wrap=True)
        elif self.enabled:
            notice(text)

    @contextmanager
    def bar(self, name: str, total: int, done: int = 0) -> Iterator[Bar]:
        """Show the progress through ``total`` items, of which ``done`` are finished already."""
        if self.terminal is not None:
            from rich.markup import escape
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as RichProgress

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            with RichProgress(
                *columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=self.terminal
            ) as rich:
                task = rich.add_task(name, total=total, completed=done)

                def advance(text: str) -> None:
                    rich.update(task, advance=1, description=escape(printable(f"{name} {text}".strip())))

                yield Bar(advance)
        else:
            yield _PlainBar(self, name, total, done) if self.enabled else Bar(lambda text: None)


class Bar:
    """The object that :meth:`Progress.bar` yields."""

    def __init__(self, advance: Callable[[str], None]) -> None:
        self.advance_by_one = advance

    def advance(self, text: str = "") -> None:
        """Count one finished item; ``text`` is shown next to the bar."""
        self.advance_by_one(text)


class _PlainBar(Bar):
    def __init__(self, progress: Progress, name: str, total: int, done: int) -> None:
        super().__init__(self._count)
        self.progress, self.name, self.total, self.done = progress, name, total, done
        self.first, self.start_time = done, time.monotonic()
        self.last_line_time = self.start_time

    def _count(self, text: str) -> None:
        self.done += 1
        now = time.monotonic()
        if now - self.last_line_time < _PLAIN_SECONDS:
            return
        self.last_line_time = now
        left = (now - self.start_time) / (self.done - self.first) * (self.total - self.done)
        notice(f"{self.name} {self.done}/{self.total} {text} left {_clock(left)}")


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"

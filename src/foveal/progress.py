"""Progress with the time left, on standard error: a bar on a terminal, otherwise plain lines.

The first plain line comes after two seconds, further ones every ten seconds.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

from .text import notice, printable

if TYPE_CHECKING:
    from rich.console import Console

_PLAIN_SECONDS = 10.0  # between two plain lines
_FIRST_SECONDS = 2.0  # before the first plain line: shorter work is silent

#: Told the share of a work that is done, from 0 to 1, and a few words about it.
Report: TypeAlias = Callable[[float, str], None]


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

                def show(count: float, text: str) -> None:
                    rich.update(task, completed=count, description=escape(printable(f"{name} {text}".strip())))

                yield Bar(show, done)
        else:
            yield Bar(_PlainLines(name, total, done) if self.enabled else lambda count, text: None, done)


class Bar:
    """The object that :meth:`Progress.bar` yields.

    Args:
        show: shows how many items are finished, the part of one in work included, and a text.
        done: items that are finished at the start.
    """

    def __init__(self, show: Report, done: int = 0) -> None:
        self._show, self._done = show, done

    def advance(self, text: str = "", count: int = 1) -> None:
        """Count finished items; ``text`` is shown next to the bar."""
        self._done += count
        self._show(self._done, text)

    def part(self, share: float, text: str = "") -> None:
        """Show that a share of the next item is done, 0 to 1; a :data:`Report`."""
        self._show(self._done + share, text)


class _PlainLines:
    """Prints a line with the time left now and then."""

    def __init__(self, name: str, total: int, done: int) -> None:
        self.name, self.total, self.first = name, total, done
        self.start_time = time.monotonic()
        self.next_line_time = self.start_time + _FIRST_SECONDS

    def __call__(self, count: float, text: str) -> None:
        now = time.monotonic()
        if now < self.next_line_time or count <= self.first or count >= self.total:
            return
        self.next_line_time = now + _PLAIN_SECONDS
        left = (now - self.start_time) / (count - self.first) * (self.total - count)
        notice(" ".join(filter(None, (f"{self.name} {int(count)}/{self.total}", text, f"left {_clock(left)}"))))


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"

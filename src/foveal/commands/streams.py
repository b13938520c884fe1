"""Standard output and standard error of the command, on any terminal, pipe or full disk."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from typing import TextIO

from ..errors import FovealError


class OutputError(FovealError):
    """Standard output cannot be written."""

    exit_code = 1


class _Output(io.FileIO):
    """Standard output, with an error that names it."""

    def write(self, data: bytes, /) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputError(f"cannot write standard output: {error.strerror}") from error


class _Notices(io.FileIO):
    """Standard error, whose notices are dropped if it cannot be written: the work goes on."""

    def write(self, data: bytes, /) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        with suppress(OSError):
            return super().write(data)
        return len(data)


def prepare() -> None:
    """Make both streams write any text: what their encoding lacks is escaped.

    Streams that another program put in their place keep their destinations.
    """
    wrapped = sys.platform != "win32"  # where a console is no file
    if wrapped and sys.stdout is not None and sys.stdout is sys.__stdout__:
        sys.stdout = _wrap(_Output(1, "wb", closefd=False), sys.stdout)
    if wrapped and sys.stderr is not None and sys.stderr is sys.__stderr__:
        sys.stderr = _wrap(_Notices(2, "wb", closefd=False), sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _wrap(raw: io.FileIO, stream: TextIO) -> io.TextIOWrapper:
    lines = raw.isatty() or isinstance(raw, _Notices)
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding=stream.encoding, line_buffering=lines)


def finish() -> None:
    """Write what standard output still holds.

    Raises:
        OutputError: it cannot be written.
        BrokenPipeError: the program that reads it has ended.
    """
    if sys.stdout is not None:
        sys.stdout.flush()


def abandon_output() -> None:
    """Drop what standard output still holds, so that Python does not try to write it at its end."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

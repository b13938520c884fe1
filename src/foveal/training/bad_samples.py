"""Errors of unreadable training images, and how many of them a run accepts."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import DataError, FovealError


def without_traceback(error: FovealError) -> FovealError:
    """Return the same error without its traceback, which keeps everything alive that the functions in it had read."""
    return type(error)(str(error))


def check_bad(bad: Mapping[int, FovealError], total: int, max_bad: float) -> None:
    """Check that the bad samples are at most the share ``max_bad`` of all samples.

    Args:
        bad: errors by index, the latest one last.
        total: number of all samples.
        max_bad: largest share, 0..1.

    Raises:
        FovealError: the latest error itself, if ``max_bad`` allows no bad sample at all.
        DataError: there are too many.
    """
    if len(bad) <= max_bad * total:
        return
    last = list(bad.values())[-1]
    if max_bad * total < 1:
        raise last
    raise DataError(
        f"{len(bad)} of {total} training images are bad, more than max_bad={max_bad:g} allows; the last: {last} "
        "('foveal data check' lists them all)"
    )

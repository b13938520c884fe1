"""Errors of unreadable training images, and how many of them a run accepts."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import DataError, FovealError


def without_traceback(error: FovealError) -> FovealError:
    """The same without its traceback, which keeps alive what the functions in it had read."""
    return type(error)(str(error))


def check_bad(bad: Mapping[int, FovealError], total: int, max_bad: float) -> None:
    """See whether so many bad samples, the last one last, are more than ``max_bad`` of all.

    Raises:
        FovealError: what the last one raised, where none may be bad.
        DataError: they are too many.
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

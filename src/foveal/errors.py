"""The exceptions that Foveal raises, and a helper that suggests the nearest valid name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FovealError(Exception):
    """Base of all errors that the caller can correct: the message says what, where and what to do.

    Attributes:
        exit_code: exit code of the command line: 2 if the request was wrong, 1 if the work failed.
    """

    exit_code = 2


class InputError(FovealError):
    """An image, a size or an argument cannot be used."""


class DataError(FovealError):
    """A data set is incomplete, inconsistent or unreadable."""


class CheckpointError(FovealError):
    """A checkpoint does not exist, is unsafe or damaged, or does not fit the model."""


class ConfigError(FovealError):
    """An option, a name or a configuration key is unknown, of the wrong type or out of range."""


class ExportError(FovealError):
    """A model cannot be exported, or its exported file computes something else."""

    exit_code = 1


class TrainingError(FovealError):
    """A training run cannot continue."""

    exit_code = 1


class DependencyError(FovealError):
    """A feature needs an optional dependency that is not installed."""


_COMPARED, _LONGEST = 2_000, 200  # names and characters: difflib's time grows with the square of the length


def nearest(name: str, valid: Iterable[str]) -> str:
    """End of an error message: ``"; did you mean 'x'?"`` with the nearest of ``valid``, else a list of valid names."""
    names = sorted(set(valid))
    compared = [each for each in names[:_COMPARED] if len(each) < _LONGEST]
    close = difflib.get_close_matches(name[:_LONGEST], compared, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    if not names:
        return ""
    listed = ", ".join(each[:_LONGEST] for each in names[:12]) + (", ..." if len(names) > 12 else "")
    return f"; valid: {listed}"

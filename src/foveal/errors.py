"""Every error that Foveal raises on purpose, and the one helper that suggests the nearest valid name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FovealError(Exception):
    """Base of all errors that are the caller's to mend: the message says what, where and what to do.

    Attributes:
        exit_code: of the command line: 2 where the request was wrong, 1 where the work failed.
    """

    exit_code = 2


class InputError(FovealError):
    """An image, a size or an argument that cannot be used."""


class DataError(FovealError):
    """A data set that is incomplete, inconsistent or unreadable."""


class CheckpointError(FovealError):
    """A weight file that is unsafe, damaged, or does not fit the model."""


class ConfigError(FovealError):
    """An unknown or ill-typed option, name or configuration key."""


class ExportError(FovealError):
    """A model that could not be exported, or whose exported file disagrees with it."""

    exit_code = 1


class TrainingError(FovealError):
    """A training run that cannot go on."""

    exit_code = 1


class DependencyError(FovealError):
    """A feature that needs an optional dependency which is not installed."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest of ``valid``, else the valid names, ready to append."""
    names = sorted(set(valid))
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    if not names:
        return ""
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return f"; valid: {shown}"

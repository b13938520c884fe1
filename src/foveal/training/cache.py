"""Decoded samples that stay in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np

from ..data.labelled import Labelled
from ..errors import DataError, FovealError, InputError
from ..progress import Progress
from .bad_samples import check_bad, without_traceback

_SAMPLED = 500  # samples that statistics are taken on where not all are in memory


class Cached:
    """Decoded samples by index, kept in memory as long as ``gib`` gibibytes last; the others are read each time.

    Args:
        max_bad: share of the samples that may be bad. Their errors are kept, and raised when they are asked for.

    Attributes:
        sampled: indices that statistics may be taken on: all where all are in memory, else some from everywhere.

    Raises:
        FovealError: see :func:`check_bad`.
    """

    def __init__(self, data: Labelled, gib: float, max_bad: float, progress: Progress) -> None:
        self.data = data
        self.kept: list[tuple[Any, Any] | FovealError] = []
        room, bad = gib * 2**30, dict[int, FovealError]()
        with progress.bar("read", len(data)) as bar:
            for index in range(len(data)):
                try:
                    sample = data[index]
                except (DataError, InputError) as error:
                    sample = bad[index] = without_traceback(error)
                    check_bad(bad, len(data), max_bad)
                else:
                    room -= sum(part.nbytes for part in sample if isinstance(part, np.ndarray))
                if room < 0 and self.kept:
                    break
                self.kept.append(sample)
                bar.advance()
        whole = len(self.kept) == len(data)
        self.sampled = range(len(data)) if whole else range(0, len(data), -(-len(data) // _SAMPLED))

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        sample = self.kept[index] if index < len(self.kept) else self.data[index]
        if isinstance(sample, FovealError):
            raise without_traceback(sample)
        return sample

    def readable(self) -> Iterator[tuple[Any, Any]]:
        """The sampled ones that are not bad."""
        for index in self.sampled:
            with suppress(DataError, InputError):
                yield self[index]

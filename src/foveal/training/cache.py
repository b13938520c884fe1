"""Decoded samples that are kept in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np

from ..data.labelled import Labelled
from ..errors import DataError, FovealError, InputError
from ..progress import Progress
from .bad_samples import check_bad, without_traceback

_SAMPLED = 500  # samples from which statistics are computed if not all samples are in memory


class Cached:
    """Decoded samples by index, kept in memory up to ``gib`` gibibytes; the others are read from their files each time.

    Args:
        data: the samples.
        gib: memory in GiB.
        max_bad: largest share of bad samples. Their errors are kept, and raised when the sample is requested.
        progress: display.

    Attributes:
        sampled: indices from which statistics may be computed: all samples if all are in memory, otherwise a subset at
            equal distances.

    Raises:
        FovealError: too many samples are bad, see :func:`check_bad`.
    """

    def __init__(self, data: Labelled, gib: float, max_bad: float, progress: Progress) -> None:
        self.data = data
        self.samples: list[tuple[Any, Any] | FovealError] = []
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
                if room < 0 and self.samples:
                    break
                self.samples.append(sample)
                bar.advance()
        complete = len(self.samples) == len(data)
        self.sampled = range(len(data)) if complete else range(0, len(data), -(-len(data) // _SAMPLED))

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        sample = self.samples[index] if index < len(self.samples) else self.data[index]
        if isinstance(sample, FovealError):
            raise without_traceback(sample)
        return sample

    def readable(self) -> Iterator[tuple[Any, Any]]:
        """Yield those of the ``sampled`` samples that are not bad."""
        for index in self.sampled:
            with suppress(DataError, InputError):
                yield self[index]

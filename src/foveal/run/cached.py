"""Decoded samples that stay in memory."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..data.labelled import Labelled
from .progress import Progress

_SAMPLED = 500  # samples that statistics are taken on where not all are in memory


class Cached:
    """Decoded samples by index, kept in memory as long as ``gib`` gibibytes last; the others are read each time.

    Attributes:
        sampled: indices that statistics may be taken on: all where all are in memory, else some from everywhere.
    """

    def __init__(self, data: Labelled, gib: float, progress: Progress) -> None:
        self.data = data
        self.kept: list[tuple[Any, Any]] = []
        room = gib * 2**30
        with progress.bar("read", len(data)) as bar:
            for index in range(len(data)):
                sample = data[index]
                room -= sum(part.nbytes for part in sample if isinstance(part, np.ndarray))
                if room < 0 and self.kept:
                    break
                self.kept.append(sample)
                bar.advance()
        whole = len(self.kept) == len(data)
        self.sampled = range(len(data)) if whole else range(0, len(data), -(-len(data) // _SAMPLED))

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.kept[index] if index < len(self.kept) else self.data[index]

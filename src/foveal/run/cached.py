"""Decoded samples that stay in memory."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..data.labelled import Labelled
from .progress import Progress


class Cached:
    """Decoded samples by index, kept in memory as long as ``gib`` gibibytes last; the others are read each time.

    Attributes:
        sampled: indices that statistics may be taken on: all that are in memory.
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
        self.sampled = range(len(self.kept))

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.kept[index] if index < len(self.kept) else self.data[index]

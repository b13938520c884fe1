"""Cut an image that arrives in bands into square tiles, and make smaller versions of it on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

TILE = 512  #: side of the tiles
Store = Callable[[int, int, int, NDArray[Any]], None]  #: (number of the level, row, column, tile (TILE, TILE, C))


class Level:
    """The image, or a version of half, a quarter, ... of its size, down to one tile.

    Args:
        size: (H, W) of this level.
        channels: of the image.
        dtype: of the image.
        store: called with each tile as soon as its rows are there; those at the bottom and right are filled with 0.
        number: 0 is the image.
        smaller: whether there are smaller versions.
    """

    def __init__(
        self, size: tuple[int, int], channels: int, dtype: str, store: Store, *, number: int = 0, smaller: bool = True
    ) -> None:
        self.size, self.number, self._store = size, number, store
        self._rows = np.zeros((0, size[1], channels), dtype)
        self._row = 0
        self.next: Level | None = None
        if smaller and max(size) > TILE:
            half = -(-size[0] // 2), -(-size[1] // 2)
            self.next = Level(half, channels, dtype, store, number=number + 1)

    def levels(self) -> Iterator[Level]:
        """This level and the smaller ones."""
        yield self
        if self.next is not None:
            yield from self.next.levels()

    def add_all(self, bands: Iterable[NDArray[Any]]) -> None:
        """Add all rows, in bands from top to bottom, ``(rows, W, C)`` each.

        Raises:
            InputError: more or fewer rows than the image has.
        """
        rows = 0
        for band in bands:
            rows += len(band)
            self._add(band, last=rows == self.size[0])
        if rows != self.size[0]:
            raise InputError(f"{rows} rows where {self.size[0]} are expected")

    def _add(self, rows: NDArray[Any], *, last: bool) -> None:
        self._rows = np.concatenate([self._rows, rows])
        while len(self._rows) >= TILE or (last and len(self._rows)):
            band, self._rows = self._rows[:TILE], self._rows[TILE:]
            for column, left in enumerate(range(0, self.size[1], TILE)):
                tile = np.zeros((TILE, TILE, band.shape[2]), band.dtype)
                part = band[:, left : left + TILE]
                tile[: len(part), : part.shape[1]] = part
                self._store(self.number, self._row, column, tile)
            self._row += 1
            if self.next is not None:  # every second pixel: classes cannot be averaged
                self.next._add(band[::2, ::2], last=last and not len(self._rows))

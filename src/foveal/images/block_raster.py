"""Windows of an image that is stored in blocks, each of which is decoded when a window needs it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .decoding import one_line_errors

_CACHE_BYTES = 192 << 20  # of decoded blocks: a row of strips of a wide image, so that each is decoded once


class BlockRaster(ABC):
    """An image in blocks of equal size from its top left corner; see :class:`~.rasters.Raster`.

    Args:
        name: in messages.
        shape: (H, W, C).
        dtype: of the values.
        block: (rows, columns) of a block.
        nodata: value of all bands of pixels without data; ``None``: every pixel has data.
    """

    def __init__(
        self,
        name: str,
        shape: tuple[int, int, int],
        dtype: np.dtype[Any],
        block: tuple[int, int],
        nodata: float | None = None,
    ) -> None:
        self.name, self.shape, self.dtype, self.nodata = name, shape, dtype, nodata
        self._block_size = block
        self._cache: OrderedDict[tuple[int, int], NDArray[Any]] = OrderedDict()
        self._cached = 0

    @abstractmethod
    def decode(self, row: int, column: int) -> NDArray[Any]:
        """The values of a block, ``(h, w, C)``; those at the bottom and right end where the image ends."""

    def read(self, rows: slice, columns: slice) -> NDArray[Any]:
        """The values of a window inside the image, ``(h, w, C)``.

        Raises:
            InputError: the file is damaged or truncated.
        """
        out = np.empty((rows.stop - rows.start, columns.stop - columns.start, self.shape[2]), self.dtype)
        high, wide = self._block_size
        for row in range(rows.start // high, -(-rows.stop // high)):
            for column in range(columns.start // wide, -(-columns.stop // wide)):
                block = self._block(row, column)
                top, left = row * high, column * wide
                first, last = max(rows.start, top), min(rows.stop, top + len(block))
                begin, end = max(columns.start, left), min(columns.stop, left + block.shape[1])
                part = block[first - top : last - top, begin - left : end - left]
                out[first - rows.start : last - rows.start, begin - columns.start : end - columns.start] = part
        return out

    def _block(self, row: int, column: int) -> NDArray[Any]:
        key = row, column
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        with one_line_errors(self.name):
            block = self.decode(row, column)
        self._cache[key] = block
        self._cached += block.nbytes
        while self._cached > _CACHE_BYTES and len(self._cache) > 1:
            self._cached -= self._cache.popitem(last=False)[1].nbytes
        return block

"""Windows of an image that can only be decoded row by row, from top to bottom."""

from __future__ import annotations

from collections import deque
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .decoding import one_line_errors

BAND_BYTES = 4 << 20  #: that decoders aim at for a band of rows


class RowDecoder(Protocol):
    """Decodes an image in bands of rows.

    Attributes:
        shape: (H, W, C) of the image.
        dtype: of its values.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype[Any]

    def restart(self) -> None:
        """Continue with the first row."""
        ...

    def decode(self, first_wanted: int) -> tuple[int, NDArray[Any] | None]:
        """Decode the next band.

        Args:
            first_wanted: bands that end above this row may be skipped.

        Returns:
            The row behind the band, and its values ``(rows, W, C)``; ``None`` if it was skipped.
        """
        ...


class RowRaster:
    """An image whose rows are decoded in order; see :class:`~.rasters.Raster`.

    The rows from the top of the last window on are kept: the pieces of streaming lie in rows, each of which begins
    below the one before, so that every row is decoded once. For a window that begins higher, decoding starts again.

    Args:
        decoder: of the rows.
        name: of the image, in messages.
    """

    nodata: float | None = None

    def __init__(self, decoder: RowDecoder, name: str) -> None:
        self.name, self._decoder = name, decoder
        self.shape, self.dtype = decoder.shape, decoder.dtype
        self._bands: deque[tuple[int, NDArray[Any]]] = deque()  # (first row, values)
        self._end = 0  # row behind the last band

    def read(self, rows: slice, columns: slice) -> NDArray[Any]:
        """The values of a window inside the image, ``(h, w, C)``.

        Raises:
            InputError: the file is damaged or truncated.
        """
        first = self._bands[0][0] if self._bands else self._end
        if rows.start < first:
            self._bands.clear()
            self._decoder.restart()
            self._end = 0
        while self._bands and self._bands[0][0] + len(self._bands[0][1]) <= rows.start:
            self._bands.popleft()
        with one_line_errors(self.name):
            while self._end < rows.stop:
                end, band = self._decoder.decode(rows.start)
                if band is not None:
                    self._bands.append((self._end, band))
                self._end = end
        out = np.empty((rows.stop - rows.start, columns.stop - columns.start, self.shape[2]), self.dtype)
        for top, band in self._bands:
            begin, end = max(rows.start, top), min(rows.stop, top + len(band))
            if begin < end:
                out[begin - rows.start : end - rows.start] = band[begin - top : end - top, columns]
        return out

"""Whole-slide images of microscopes, which OpenSlide reads.

OpenSlide (LGPL) is a library of its own, which the package ``openslide`` loads if it is installed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DependencyError, InputError
from .block_raster import BlockRaster

#: Of the formats that only OpenSlide reads.
SUFFIXES = (".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".dcm")
INSTALL = "pip install 'foveal[slide]'"
_SIDE = 1024


class SlideRaster(BlockRaster):
    """A level of a slide, in red, green, blue and alpha of 8 bits. Places that were not scanned have no data.

    Args:
        slide: an ``openslide.OpenSlide``.
        level: 0 is the largest.
        name: of the file, for messages.

    Raises:
        InputError: no such level.
    """

    def __init__(self, slide: Any, level: int, name: str) -> None:
        if not 0 <= level < slide.level_count:
            raise InputError(f"{name}: level {level}, but its levels are 0 to {slide.level_count - 1}")
        width, height = slide.level_dimensions[level]
        # Where alpha is 0, OpenSlide gives 0 in all bands: there is nothing.
        super().__init__(name, (height, width, 4), np.dtype(np.uint8), (_SIDE, _SIDE), nodata=0)
        self._slide, self._level = slide, level

    def decode(self, row: int, column: int) -> NDArray[Any]:
        """The values of a block, always of the same place, so that rounding of places is the same for all windows."""
        top, left = row * _SIDE, column * _SIDE
        size = min(_SIDE, self.shape[1] - left), min(_SIDE, self.shape[0] - top)
        factor = self._slide.level_downsamples[self._level]
        corner = math.floor(left * factor + 0.5), math.floor(top * factor + 0.5)  # in pixels of level 0
        try:
            block = np.asarray(self._slide.read_region(corner, self._level, size))
        except self._slide_error as error:
            raise OSError(str(error)) from error
        return np.where(block[..., 3:] == 0, np.uint8(0), block)

    @property
    def _slide_error(self) -> type[Exception]:
        import openslide

        return openslide.OpenSlideError


@contextmanager
def open_slide(path: Path, level: int, name: str) -> Iterator[SlideRaster]:
    """Open a slide for reading windows.

    Args:
        path: of the file.
        level: 0 is the largest.
        name: of the file, for messages.

    Raises:
        InputError: not a slide, damaged, or without this level.
        DependencyError: openslide is not installed.
    """
    try:
        import openslide
    except (ImportError, OSError) as error:  # OSError: the package is there, the library is not
        raise DependencyError(f"{name}: a slide is read by OpenSlide: {INSTALL}") from error
    try:
        slide = openslide.OpenSlide(path)
    except openslide.OpenSlideError as error:
        raise InputError(f"{name}: OpenSlide cannot read it ({' '.join(str(error).split())})") from error
    with slide:
        yield SlideRaster(slide, level, name)

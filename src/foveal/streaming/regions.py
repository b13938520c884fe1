"""Sizes of maps, and rectangles in them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple


class Region(NamedTuple):
    """The places of a map from ``top`` to before ``bottom``, and from ``left`` to before ``right``."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def places(self) -> int:
        return self.height * self.width

    @property
    def is_empty(self) -> bool:
        return self.bottom <= self.top or self.right <= self.left

    def within(self, outer: Region) -> tuple[slice, slice]:
        """Rows and columns of this region in an array that holds ``outer``."""
        rows = slice(self.top - outer.top, self.bottom - outer.top)
        return rows, slice(self.left - outer.left, self.right - outer.left)

    def clipped(self, extent: Extent) -> Region:
        """The part of the region inside a map."""
        top, bottom = max(0, self.top), min(self.bottom, extent.height)
        return Region(top, bottom, max(0, self.left), min(self.right, extent.width))


class Extent(NamedTuple):
    """Size of a whole map.

    Attributes:
        height: rows.
        width: columns.
        stride: pixels of the image from one place to the next; below 1 where the map is larger than the image.
    """

    height: int
    width: int
    stride: Fraction

    @property
    def whole(self) -> Region:
        """The region of all places."""
        return Region(0, self.height, 0, self.width)

    @property
    def places(self) -> int:
        """Number of places."""
        return self.height * self.width


def hull(regions: Iterable[Region]) -> Region:
    """The smallest region that holds all of ``regions``, of which there is at least one."""
    tops, bottoms, lefts, rights = zip(*regions, strict=True)
    return Region(min(tops), max(bottoms), min(lefts), max(rights))


@dataclass(frozen=True)
class Grid:
    """The square pieces into which a pass cuts the image and, on the same lines, every map.

    Attributes:
        height: of the image, in pixels.
        width: of the image.
        side: of a piece in pixels, a multiple of every stride, so that pieces of maps begin at whole places.
    """

    height: int
    width: int
    side: int

    @property
    def rows(self) -> int:
        """Number of rows of pieces."""
        return -(-self.height // self.side)

    @property
    def columns(self) -> int:
        """Number of pieces in a row."""
        return -(-self.width // self.side)

    @property
    def count(self) -> int:
        """Number of pieces."""
        return self.rows * self.columns

    def piece(self, index: int, extent: Extent) -> Region:
        """What piece ``index`` (counted row by row) is of a map. The last ones reach to the end of the map."""
        row, column = divmod(index, self.columns)
        step = int(self.side / extent.stride)
        bottom = extent.height if row == self.rows - 1 else (row + 1) * step
        right = extent.width if column == self.columns - 1 else (column + 1) * step
        return Region(row * step, bottom, column * step, right).clipped(extent)

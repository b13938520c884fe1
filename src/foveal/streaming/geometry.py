"""Which part of the inputs of an operation a part of its output needs, whatever computes it.

Each operation knows the size of the whole map. What it reads ends at the borders of the map, where the network itself
pads. Margins follow from kernels, strides and dilations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from numpy.typing import NDArray

from .regions import Extent, Region


class UnstreamableError(Exception):
    """Why an operation cannot be computed in pieces; the name of its layer is added where it is known."""


class Geometry(Protocol):
    """An operation whose output at a place depends on a bounded window of its inputs.

    ``extents`` are those of the inputs, ``None`` for a tensor that is the same for all places.
    """

    def extent(self, extents: Sequence[Extent | None]) -> Extent:
        """Size of the output."""
        ...

    def needs(self, out: Region, extents: Sequence[Extent | None]) -> list[Region | None]:
        """The part of each input that ``out`` is computed from, inside that input."""
        ...


@runtime_checkable
class ArrayOperation(Geometry, Protocol):
    """An operation on one map that NumPy computes, whatever computes the network."""

    def run_array(self, values: NDArray[Any], window: Region, out: Region, size: Extent) -> NDArray[Any]:
        """Compute ``out`` from the values ``(C, h, w)`` of a window of the map, which has the given size."""
        ...


@dataclass(frozen=True)
class PointwiseGeometry:
    """A function of the channels of each place."""

    def extent(self, extents: Sequence[Extent | None]) -> Extent:
        sizes = {extent for extent in extents if extent is not None}
        if len(sizes) != 1:
            described = " and ".join(f"{size.height}x{size.width}" for size in sizes)
            raise UnstreamableError(f"it joins maps of different sizes, {described}")
        return sizes.pop()

    def needs(self, out: Region, extents: Sequence[Extent | None]) -> list[Region | None]:
        return [None if extent is None else out for extent in extents]


@dataclass(frozen=True)
class SlidingGeometry:
    """A kernel that slides over the map: a convolution or a pooling.

    Attributes:
        kernel: (rows, columns).
        stride: in both directions.
        padding: places at the top and bottom, and at the left and right.
        dilation: of the kernel.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    def extent(self, extents: Sequence[Extent | None]) -> Extent:
        size = only_map(extents)
        if self.stride[0] != self.stride[1]:
            raise UnstreamableError(f"its stride is {self.stride}")
        height, width = (
            (side + 2 * pad - step * (kernel - 1) - 1) // stride + 1
            for side, pad, step, kernel, stride in zip(
                size[:2], self.padding, self.dilation, self.kernel, self.stride, strict=True
            )
        )
        return Extent(height, width, size.stride * self.stride[0])

    def reads(self, out: Region) -> Region:
        """What ``out`` reads, padding included."""
        spans = []
        for axis, (first, last) in enumerate(((out.top, out.bottom), (out.left, out.right))):
            start = first * self.stride[axis] - self.padding[axis]
            length = (last - first - 1) * self.stride[axis] + self.dilation[axis] * (self.kernel[axis] - 1) + 1
            spans += [start, start + length]
        return Region(*spans)

    def needs(self, out: Region, extents: Sequence[Extent | None]) -> list[Region | None]:
        return [self.reads(out).clipped(only_map(extents))]


@dataclass(frozen=True)
class PaddingGeometry:
    """Padding of the map as an operation of its own.

    Attributes:
        left, right, top, bottom: places to add.
    """

    left: int
    right: int
    top: int
    bottom: int

    def extent(self, extents: Sequence[Extent | None]) -> Extent:
        size = only_map(extents)
        height, width = size.height + self.top + self.bottom, size.width + self.left + self.right
        return Extent(height, width, size.stride)

    def needs(self, out: Region, extents: Sequence[Extent | None]) -> list[Region | None]:
        size = only_map(extents)
        spans = []
        for first, last, before, side in (
            (out.top, out.bottom, self.top, size.height),
            (out.left, out.right, self.left, size.width),
        ):
            start = min(max(first - before, 0), side - 1)  # a part of the padding alone still reads one place
            spans += [start, max(start + 1, min(last - before, side))]
        return [Region(*spans)]


@dataclass(frozen=True)
class EnlargingGeometry:
    """Interpolation by a whole factor.

    Attributes:
        factor: places of the output for a place of the input, in both directions.
        reach: places on each side of a place that its interpolation reads; the border is replicated.
    """

    factor: int
    reach: int

    def extent(self, extents: Sequence[Extent | None]) -> Extent:
        size = only_map(extents)
        return Extent(size.height * self.factor, size.width * self.factor, size.stride / self.factor)

    def reads(self, out: Region) -> Region:
        """What ``out`` reads, places beyond the border included."""
        inner = coarse(out, self.factor)
        return Region(
            inner.top - self.reach, inner.bottom + self.reach, inner.left - self.reach, inner.right + self.reach
        )

    def needs(self, out: Region, extents: Sequence[Extent | None]) -> list[Region | None]:
        return [self.reads(out).clipped(only_map(extents))]


@dataclass(frozen=True)
class ShufflingGeometry:
    """Pixel shuffle: the channels of a place become a square of ``factor`` by ``factor`` places."""

    factor: int

    def extent(self, extents: Sequence[Extent | None]) -> Extent:
        size = only_map(extents)
        return Extent(size.height * self.factor, size.width * self.factor, size.stride / self.factor)

    def needs(self, out: Region, extents: Sequence[Extent | None]) -> list[Region | None]:
        return [coarse(out, self.factor)]


@dataclass(frozen=True)
class CroppingGeometry:
    """The first rows and columns of a map."""

    height: int
    width: int

    def extent(self, extents: Sequence[Extent | None]) -> Extent:
        size = only_map(extents)
        return Extent(min(self.height, size.height), min(self.width, size.width), size.stride)

    def needs(self, out: Region, extents: Sequence[Extent | None]) -> list[Region | None]:
        return [out]


def only_map(extents: Sequence[Extent | None]) -> Extent:
    """The size of the only input of an operation."""
    (size,) = extents
    assert size is not None
    return size


def coarse(out: Region, factor: int) -> Region:
    """Places of a map that hold ``out`` in the map ``factor`` times its size."""
    return Region(out.top // factor, -(-out.bottom // factor), out.left // factor, -(-out.right // factor))


def fine(region: Region, factor: int) -> Region:
    """The places of the map ``factor`` times the size that a region holds."""
    return Region(*(factor * side for side in region))


def power_of_two_below(places: int) -> float:
    """The largest ``2^-n`` with ``2^-n * places <= 1``: scaling by it is exact, and keeps sums small in 16 bits."""
    return 2.0 ** -math.ceil(math.log2(places))

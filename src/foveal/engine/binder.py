"""Collect the maps and operations of a plan at one size, and place the maps in one block of memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .packing import Packed
from .plan import Plan, Step

#: Numbers of the operations in the library (the enum Kind in csrc/interface.h).
CONV, DEPTHWISE, CHAIN, ATTENTION, POOL, NORM, COMBINE, UPSAMPLE, INPUT, OUTPUT, SHUFFLE, ENLARGE = range(12)
SOFTMAX, TOKEN_CONV, SCAN, PAD, TABLE, AVERAGE, READ_MAP, WRITE_MAP, REGROUP, MASKS = range(12, 22)
CUT_WINDOWS, JOIN_WINDOWS, SLICE, CONCAT = range(22, 26)
DEPTHWISE_PROJECT, EXPAND_DEPTHWISE_PROJECT, DENSE_PROJECT, EXPAND_DEPTHWISE = range(4)  # modes of a chain
ADD, MULTIPLY, FIRST = range(3)  # modes of COMBINE
ATTENTION_ROWS = 4  # rows of the parts whose sums are added in order
_MAX_VALUES = 1 << 36  # 256 GiB in float32


class Shape(NamedTuple):
    """Batch, height, width and channels of a map."""

    batch: int
    height: int
    width: int
    channels: int


@dataclass
class MapLayout:
    """Where a map lies, and which operations use it.

    Attributes:
        shape: its shape.
        planar: whether it is an array of the caller, ``(batch, channels, height, width)``.
        border: rows and columns of zeros on each side.
        overhang: values behind the channels of a pixel that grouped operations overwrite.
        exact: whether a pixel has as many values as channels, up to whole units of 32 bits.
        floats: whether it holds float32 in a library for another type.
        first: number of the first operation that uses it.
        last: number of the last one.
        offset: its place in the block of memory, in values.
    """

    shape: Shape
    planar: bool = False
    border: int = 0
    overhang: int = 0
    exact: bool = False
    floats: bool = False
    first: int = 0
    last: int = 0
    offset: int = 0


@dataclass
class Operation:
    """An operation of the library.

    Attributes:
        kind: its number in the library.
        inputs: numbers of the maps that it reads.
        out: number of the map that it writes.
        residual: number of the map that is added.
        act: activation.
        p: whole numbers, see csrc/engine.cpp.
        f: other numbers.
        arrays: pairs of weight and bias.
        work: floats of memory between its phases.
    """

    kind: int
    inputs: tuple[int, ...]
    out: int
    residual: int | None = None
    act: str = "none"
    p: tuple[int, ...] = ()
    f: tuple[float, ...] = ()
    arrays: tuple[tuple[NDArray[Any] | None, NDArray[np.float32] | None], ...] = ()  # weight and bias
    work: int = 0


class Binder:
    """Collects maps and operations.

    Args:
        plan: the plan.
        packed: its weights.
        shapes: ``(B, C, H, W)`` of each array that the caller gives.
        threads: number of threads that will run it.

    Attributes:
        arrays: shape of each array of the caller.
        images: numbers of the maps that are the inputs, in the order of the arrays.
        outs: numbers of the maps that are the results, with the shape of each, and whether it is returned as
            ``(B, C)``, not ``(B, C, H, W)``.
        near_end: whether the step that is bound is one of the last of a network that gives a class to each place.
    """

    def __init__(self, plan: Plan, packed: Packed, shapes: Sequence[tuple[int, ...]], threads: int = 1) -> None:
        self.arrays = [Shape(batch, height, width, channels) for batch, channels, height, width in shapes]
        self.library, self.packed, self.threads = packed.library, packed, threads
        self.width = self.library.width
        self.maps = {0: MapLayout(self.arrays[0], planar=True)}
        self.images, self.outs = [0], list[tuple[int, Shape, bool]]()
        self.operations: list[Operation] = []
        self.extra = 1 + max(step.out for step in plan.steps)
        self.image, self.near_end = self.arrays[0], False

    def shape(self, index: int) -> Shape:
        """Shape of a map by its number."""
        return self.maps[index].shape

    def new_map(self, shape: Shape, *, planar: bool = False) -> int:
        """A map that no step of the plan names."""
        self.maps[self.extra] = MapLayout(shape, planar)
        self.extra += 1
        return self.extra - 1

    def add(self, operation: Operation, shape: Shape, *, planar: bool = False, flat: bool = False) -> None:
        """Append an operation that writes a map of this shape; a planar one is a result, a flat one ``(B, C)``."""
        if min(shape) < 1 or math.prod(shape) > _MAX_VALUES:
            raise ValueError(f"a map of {'x'.join(map(str, shape))} (B, H, W, C) is empty or too large")
        reads = [*operation.inputs, *([] if operation.residual is None else [operation.residual])]
        allowed = {INPUT: operation.inputs, ENLARGE: operation.inputs[1:]}.get(operation.kind, ())
        if any(self.maps[index].planar and index not in allowed for index in reads):
            raise ValueError("it reads an array of the caller as a map")
        checked_by_step = operation.kind in (SHUFFLE, WRITE_MAP)
        if operation.residual is not None and not checked_by_step and self.shape(operation.residual) != shape:
            raise ValueError(f"the residual is {self.shape(operation.residual)}, the result {shape}")
        self.maps.setdefault(operation.out, MapLayout(shape, planar))
        if planar:
            self.outs.append((operation.out, shape, flat))
        self.operations.append(operation)

    def spatial(self, step: Step, source: int) -> tuple[Shape, int, int]:
        """Size of the result of a convolution with its channels as in the input, and the padding at top and left.

        The input receives the border that the kernel needs.
        """
        kernel, stride = step.params["kernel"], step.params["stride"]
        batch, *sides, channels = self.shape(source)
        outs, pads, border = [], [], 0
        for side in sides:
            if step.params["padding"] == "same" and stride > 1:
                out = -(-side // stride)
                pad = max(0, (out - 1) * stride + kernel - side) // 2
            else:
                pad = kernel // 2
                out = (side + 2 * pad - kernel) // stride + 1
            outs.append(out)
            pads.append(pad)
            border = max(border, pad, (out - 1) * stride - pad + kernel - side)
        self.needs_border = border
        return Shape(batch, outs[0], outs[1], channels), pads[0], pads[1]

    def give_border(self, source: int) -> None:
        """Let the input of a spatial step have zeros around it."""
        if self.maps[source].planar:
            raise ValueError("a convolution of the planar image")
        self.maps[source].border = max(self.maps[source].border, self.needs_border)

    def _mark_formats(self) -> None:
        """Store images of few channels without padding, where only dense convolutions read them.

        What a convolution computes for a result stays in float32. Those of chains do not: whether a chain is one
        operation depends on the number of threads, and results do not.
        """
        readers: dict[int, list[Operation]] = {}
        for op in self.operations:
            for index in op.inputs:
                readers.setdefault(index, []).append(op)
        residuals = {op.residual for op in self.operations}
        for out in (op.out for op in self.operations if op.kind == INPUT):
            self.maps[out].exact = (
                out in readers
                and out not in residuals
                and all(
                    (op.kind == CONV and out not in op.inputs[1:])
                    or (op.kind == CHAIN and op.p[5] != DEPTHWISE_PROJECT)
                    for op in readers[out]
                )
            )
        for step in self.packed.plan.steps:
            widened = step.kind == "conv" and step.out in self.maps and step.out not in residuals
            if widened and self.library.dtype != "float32":
                self.maps[step.out].floats = all(op.kind in (OUTPUT, ENLARGE) for op in readers.get(step.out, []))

    def pixel(self, index: int) -> int:
        """Number of values from one pixel of a map to the next."""
        item = self.maps[index]
        channels = item.shape.channels
        return self.library.paired(channels) if item.exact else self.library.padded(channels) + item.overhang

    def values(self, index: int) -> int:
        """Its size in memory, with two vectors behind it."""
        item = self.maps[index]
        batch, height, width, _ = item.shape
        pixels = batch * (height + 2 * item.border) * (width + 2 * item.border)
        scale = 4 // self.library.values.itemsize if item.floats else 1
        return (pixels * self.pixel(index) + 2 * self.width) * scale

    def place(self) -> None:
        """Give every map a place in the arena; maps that are not in use at the same time may share it.

        Raises:
            InputError: the maps need too much memory, or masks are computed from a map whose pixels are not adjacent.
        """
        self._mark_formats()
        for op in self.operations:  # later operations than the one that reads it may have made its pixels wider
            if (
                op.kind == MASKS
                and not op.arrays
                and self.pixel(op.inputs[0]) != self.maps[op.inputs[0]].shape.channels
            ):
                raise InputError(f"masks of features of {self.shape(op.inputs[0])} with values between the pixels")
        for i, op in enumerate(self.operations):
            self.maps[op.out].first = i
            for index in (*op.inputs, op.out, op.out if op.residual is None else op.residual):
                self.maps[index].last = i
        item_size = self.library.values.itemsize
        line = 64 // item_size  # values of a cache line
        placed: list[tuple[MapLayout, int]] = []
        self.size = 0
        inner = {index: item for index, item in self.maps.items() if not item.planar}
        for index, item in sorted(inner.items(), key=lambda pair: -self.values(pair[0])):
            size = -(-self.values(index) // line) * line
            busy = sorted(
                (other.offset, other.offset + length)
                for other, length in placed
                if other.first <= item.last and item.first <= other.last
            )
            offset = 0
            for begin, end in busy:
                if begin - offset >= size:
                    break
                offset = max(offset, end)
            item.offset = offset
            placed.append((item, size))
            self.size = max(self.size, offset + size)
        if self.size > _MAX_VALUES:
            raise InputError(f"the maps need {self.size * item_size / 2**30:.0f} GiB: use a smaller image or batch")


def expect(array: NDArray[np.float32], shape: tuple[int | None, ...]) -> None:
    """Raise ValueError if an array has another shape; ``None`` stands for any length."""
    if array.ndim != len(shape) or any(b is not None and a != b for a, b in zip(array.shape, shape, strict=True)):
        raise ValueError(f"an array of {array.shape} where {shape} is needed")

"""Bind a plan to a size: the operations of the library, with the memory that they share."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .binder import Binder, MapLayout, Operation, Shape
from .costs import count_bytes, count_macs, label
from .library import Library, Map, Op, aligned
from .packing import Packed
from .plan import ACTS, Plan
from .steps import STEPS
from .steps_prompts import PROMPT_STEPS
from .steps_tokens import TOKEN_STEPS

_NEAR_END = 5  # steps of a plan, see Binder.near_end
_STEPS = {**STEPS, **TOKEN_STEPS, **PROMPT_STEPS}


@dataclass
class Binding:
    """A plan bound to the shape of its input: ready to run.

    Attributes:
        library: the compiled library.
        ops: the operations, for the library.
        maps: the maps, for the library.
        arena: memory of all maps between the operations.
        images: numbers of the maps that are the inputs.
        outs: the results, see :class:`~foveal.engine.binder.Binder`.
        labels: kind and shapes of each operation, for reports.
        macs: multiply-accumulates of each operation.
        bytes: of the maps and weights of each operation.
        keep: arrays that the operations point to.
    """

    library: Library
    ops: ctypes.Array[Op]
    maps: ctypes.Array[Map]
    arena: NDArray[Any]
    images: list[int]
    outs: list[tuple[int, Shape, bool]]
    labels: list[str]
    macs: list[int]
    bytes: list[int]
    keep: list[NDArray[Any]] = field(default_factory=list)

    def run(
        self, arrays: Sequence[NDArray[np.float32]], threads: int, seconds: NDArray[np.float64] | None = None
    ) -> list[NDArray[np.float32]]:
        """Run on arrays ``(B, C, H, W)``, contiguous, of the shapes that it is bound to.

        Raises:
            MemoryError: not enough memory for the intermediate rows of a thread.
        """
        for index, array in zip(self.images, arrays, strict=True):
            self.maps[index].data = array.ctypes.data
        results = []
        for index, (n, height, width, channels), _ in self.outs:
            results.append(np.empty((n, channels, height, width), np.float32))
            self.maps[index].data = results[-1].ctypes.data
        times = None if seconds is None else seconds.ctypes.data
        if self.library.run(self.ops, len(self.ops), self.maps, threads, times):
            raise MemoryError("native engine: not enough memory")
        flat = [flat for _, _, flat in self.outs]
        return [result[:, :, 0, 0] if is_flat else result for result, is_flat in zip(results, flat, strict=True)]


def bind(plan: Plan, packed: Packed, shapes: Sequence[tuple[int, ...]], threads: int = 1) -> Binding:
    """Bind ``plan`` to inputs ``(B, C, H, W)``.

    Args:
        plan: the plan.
        packed: its weights.
        shapes: shape of each input.
        threads: number of threads that will run it: how layers are divided may depend on it, results do not.

    Raises:
        InputError: the network cannot run at this size, or its arrays do not fit together.
    """
    binder = Binder(plan, packed, shapes, threads)
    for number, step in enumerate(plan.steps):
        binder.near_end = bool(plan.steps[-1].params.get("stride")) and number >= len(plan.steps) - _NEAR_END
        try:
            _STEPS[step.kind](binder, step)
        except ValueError as error:
            raise InputError(f"step {number} ({step.kind}) of the plan: {error}") from None
    binder.place()
    return _to_library(binder)


# ---- the library's structures


def _to_library(binder: Binder) -> Binding:
    arena = aligned(binder.size, binder.library.values)
    maps = (Map * (max(binder.maps) + 1))()
    for index, item in binder.maps.items():
        _describe_map(maps[index], binder, index, item, arena.ctypes.data)
    keep: list[NDArray[Any]] = [arena]
    ops = (Op * len(binder.operations))()
    for op, operation in zip(ops, binder.operations, strict=True):
        _describe_operation(op, operation, keep)
    labels = [label(binder, operation) for operation in binder.operations]
    macs = [count_macs(binder, operation) for operation in binder.operations]
    sizes = [count_bytes(binder, operation) for operation in binder.operations]
    return Binding(binder.library, ops, maps, arena, binder.images, binder.outs, labels, macs, sizes, keep)


def _describe_map(entry: Map, binder: Binder, index: int, item: MapLayout, arena: int) -> None:
    _, height, width, channels = item.shape
    entry.batch, entry.height, entry.width, entry.channels = item.shape
    if item.planar:
        entry.pixel, entry.row, entry.image = 1, width, channels * height * width
        return
    pixel, border = binder.pixel(index), item.border
    entry.pixel, entry.row = pixel, pixel * (width + 2 * border)
    entry.image, entry.border, entry.floats = entry.row * (height + 2 * border), border, item.floats
    entry.data = arena + binder.library.values.itemsize * (item.offset + border * (entry.row + pixel))


def _describe_operation(entry: Op, operation: Operation, keep: list[NDArray[Any]]) -> None:
    entry.kind, entry.act, entry.out = operation.kind, ACTS.index(operation.act), operation.out
    entry.residual = -1 if operation.residual is None else operation.residual
    for i in range(4):
        entry.inputs[i] = operation.inputs[i] if i < len(operation.inputs) else -1
    for i, value in enumerate(operation.p):
        entry.p[i] = value
    for i, value in enumerate(operation.f):
        entry.f[i] = value
    for i, pair in enumerate(operation.arrays):
        for pointers, array in zip((entry.weight, entry.bias), pair, strict=True):
            if array is not None:
                keep.append(array)
                pointers[i] = array.ctypes.data
    if operation.work:
        keep.append(np.empty(operation.work, np.float32))
        entry.work = keep[-1].ctypes.data

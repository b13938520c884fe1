"""Bind the steps on tokens: the pixels of a map, or of a window of it, row by row."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from .binder import (
    AVERAGE,
    CONCAT,
    CUT_WINDOWS,
    JOIN_WINDOWS,
    PAD,
    SCAN,
    SLICE,
    SOFTMAX,
    TABLE,
    TOKEN_CONV,
    Binder,
    Operation,
    Shape,
    expect,
)
from .plan import Step

_MAX_ADDENDS = 1 << 26  # of the scores of an attention: 256 MiB


def _attention(binder: Binder, step: Step) -> None:
    heads, shared, dim, window = (step.params[name] for name in ("heads", "kv_heads", "head_dim", "window"))
    shapes = [binder.shape(index) for index in step.inputs]
    if heads % shared or len(shapes) == 2:
        raise ValueError(f"{heads} heads with {shared} of keys and values, in {len(shapes)} maps")
    if len(shapes) == 1:
        expected, firsts = ((heads + 2 * shared) * dim,), (0, heads * dim, (heads + shared) * dim)
        inputs = step.inputs * 3
    else:
        expected, firsts, inputs = (heads * dim, shared * dim, shared * dim), (0, 0, 0), step.inputs
    if any(shape.channels != channels for shape, channels in zip(shapes, expected, strict=True)):
        raise ValueError(f"maps of {[shape.channels for shape in shapes]} channels where {expected} are needed")
    query, key, value = (binder.shape(index) for index in inputs)
    batch = max(query.batch, key.batch)
    if key[:3] != value[:3] or min(query.batch, key.batch) not in (1, batch):
        raise ValueError(f"queries {query}, keys {key}, values {value}")
    if window and query[1:3] != key[1:3]:
        raise ValueError("windows of maps of different sizes")
    p = (heads, shared, dim, window, *firsts, dim)
    operation = Operation(SOFTMAX, inputs, step.out, p=p, f=(step.params["scale"],))
    binder.add(operation, query._replace(batch=batch, channels=heads * dim))


def _biased_attention(binder: Binder, step: Step) -> None:
    heads, dim, value_dim = (step.params[name] for name in ("heads", "head_dim", "value_dim"))
    firsts = tuple(step.params[f"{name}_first"] for name in ("query", "key", "value"))
    shapes = [binder.shape(index) for index in step.inputs]
    for shape, first, width in zip(shapes, firsts, (dim, dim, value_dim), strict=True):
        if shape[:3] != shapes[0][:3] or first + heads * width > shape.channels:
            raise ValueError(f"{heads} heads of {width} channels from channel {first} of {shape}")
    query = shapes[0]
    if query.height != query.width:
        raise ValueError(f"a window of {query}")
    expect(binder.packed.raw(step, "bias"), (heads, query.height**2))
    if heads * query.height**2 * binder.library.padded(query.height**2) > _MAX_ADDENDS:
        raise ValueError(f"windows of {query.height}x{query.width} with {heads} heads")
    p = (heads, heads, dim, 0, *firsts, value_dim)
    arrays = ((binder.packed.addends(step, "bias"), None),)
    operation = Operation(SOFTMAX, step.inputs, step.out, p=p, f=(step.params["scale"],), arrays=arrays)
    binder.add(operation, query._replace(channels=heads * value_dim))


def _cut_windows(binder: Binder, step: Step) -> None:
    (batch, height, width, channels), side = binder.shape(step.inputs[0]), step.params["side"]
    windows = batch * -(-height // side) * -(-width // side)
    binder.add(Operation(CUT_WINDOWS, step.inputs, step.out), Shape(windows, side, side, channels))


def _join_windows(binder: Binder, step: Step) -> None:
    windows, (batch, height, width, _) = (binder.shape(index) for index in step.inputs)
    side = windows.height
    if side != windows.width or windows.batch != batch * -(-height // side) * -(-width // side):
        raise ValueError(f"windows {windows} for a map of {height}x{width}")
    shape = Shape(batch, height, width, windows.channels)
    binder.add(Operation(JOIN_WINDOWS, step.inputs, step.out, step.residual), shape)


def _slice(binder: Binder, step: Step) -> None:
    shape, first, count = binder.shape(step.inputs[0]), step.params["first"], step.params["count"]
    if first + count > shape.channels:
        raise ValueError(f"{count} channels from {first} on of a map of {shape}")
    binder.add(Operation(SLICE, step.inputs, step.out, step.residual, p=(first,)), shape._replace(channels=count))


def _concat(binder: Binder, step: Step) -> None:
    shapes = [binder.shape(index) for index in step.inputs]
    if any(shape[:3] != shapes[0][:3] for shape in shapes):
        raise ValueError(f"maps of {' and '.join(map(str, shapes))}")
    shape = shapes[0]._replace(channels=sum(shape.channels for shape in shapes))
    binder.add(Operation(CONCAT, step.inputs, step.out, None, step.act), shape)


def _token_conv(binder: Binder, step: Step) -> None:
    shape, kernel = binder.shape(step.inputs[0]), step.params["kernel"]
    expect(binder.packed.raw(step, "weight"), (shape.channels, 1, kernel))
    expect(binder.packed.raw(step, "bias"), (shape.channels,))
    weight = rows_of(binder, binder.packed.raw(step, "weight")[:, 0].T)
    arrays = ((weight, binder.packed.padded(step, "bias")),)
    p = (kernel, step.params["window"])
    binder.add(Operation(TOKEN_CONV, step.inputs, step.out, None, step.act, p, arrays=arrays), shape)


def _scan(binder: Binder, step: Step) -> None:
    shape, steps, matrices = (binder.shape(index) for index in step.inputs)
    decay, first = binder.packed.raw(step, "decay"), step.params["first"]
    expect(decay, (None, steps.channels))
    expect(binder.packed.raw(step, "skip"), (steps.channels,))
    if steps[:3] != shape[:3] or matrices[:3] != shape[:3] or shape.channels < steps.channels:
        raise ValueError(f"maps of {shape}, {steps} and {matrices}")
    if first + 2 * len(decay) > matrices.channels:
        raise ValueError(f"{len(decay)} states from channel {first} of {matrices.channels}")
    arrays = ((rows_of(binder, decay), binder.packed.padded(step, "skip")),)
    p = (step.params["window"], len(decay), steps.channels, first)
    binder.add(Operation(SCAN, step.inputs, step.out, p=p, arrays=arrays), shape)


def rows_of(binder: Binder, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each row padded to whole vectors."""
    width = binder.library.padded(rows.shape[-1]) - rows.shape[-1]
    return np.ascontiguousarray(np.pad(rows, [(0, 0)] * (rows.ndim - 1) + [(0, width)]), np.float32)


def _pad(binder: Binder, step: Step) -> None:
    shape = binder.shape(step.inputs[0])
    if step.kind == "pad":
        multiple = step.params["multiple"]
        height, width = (-(-side // multiple) * multiple for side in shape[1:3])
    else:
        _, height, width, _ = binder.shape(step.inputs[1])
        if height > shape.height or width > shape.width:
            raise ValueError(f"a map of {shape} cropped to {height}x{width}")
    binder.add(Operation(PAD, step.inputs, step.out), shape._replace(height=height, width=width))


def _positions(binder: Binder, step: Step) -> None:
    shape = binder.shape(step.inputs[0])
    if shape.channels % 4:
        raise ValueError(f"positions with {shape.channels} channels")
    arrays = ((rows_of(binder, position_embedding(*shape[1:])), None),)
    binder.add(Operation(TABLE, step.inputs, step.out, arrays=arrays), shape)


def position_embedding(height: int, width: int, channels: int) -> NDArray[np.float32]:
    """Sines and cosines of column and row, ``(height, width, channels)`` (:class:`foveal.models.vit.Positions`)."""
    quarter = channels // 4
    frequencies = np.exp(np.arange(quarter) * (-math.log(10000.0) / max(quarter - 1, 1)))
    y, x = (np.arange(side)[:, None] * frequencies for side in (height, width))
    table = np.empty((height, width, 4, quarter), np.float32)
    table[:, :, 0], table[:, :, 1] = np.sin(x), np.cos(x)
    table[:, :, 2], table[:, :, 3] = np.sin(y)[:, None], np.cos(y)[:, None]
    return table.reshape(height, width, channels)


def _average(binder: Binder, step: Step) -> None:
    batch, height, width, channels = binder.shape(step.inputs[0])
    binder.add(Operation(AVERAGE, step.inputs, step.out), Shape(batch, -(-height // 2), -(-width // 2), channels))


#: The function for each kind of step.
TOKEN_STEPS: Mapping[str, Callable[[Binder, Step], None]] = {
    "attention": _attention,
    "biased_attention": _biased_attention,
    "cut_windows": _cut_windows,
    "join_windows": _join_windows,
    "slice": _slice,
    "concat": _concat,
    "token_conv": _token_conv,
    "scan": _scan,
    "pad": _pad,
    "crop": _pad,
    "positions": _positions,
    "average": _average,
}

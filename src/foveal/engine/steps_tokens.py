"""Bind the steps on tokens: the pixels of a map, or of a window of it, row by row."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from .binder import AVERAGE, PAD, SCAN, SOFTMAX, TABLE, TOKEN_CONV, Binder, Operation, Shape, expect
from .plan import Step


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
    p = (heads, shared, dim, window, *firsts)
    operation = Operation(SOFTMAX, inputs, step.out, p=p, f=(step.params["scale"],))
    binder.add(operation, query._replace(batch=batch, channels=heads * dim))


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
    "token_conv": _token_conv,
    "scan": _scan,
    "pad": _pad,
    "crop": _pad,
    "positions": _positions,
    "average": _average,
}

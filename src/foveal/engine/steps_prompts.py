"""Bind the steps of SAM's mask decoder: attention between few tokens and a map, masks, further inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from .binder import CONV, INPUT, MASKS, READ_MAP, REGROUP, TABLE, WRITE_MAP, Binder, Operation, expect
from .plan import Step
from .steps_tokens import rows_of

_READ_ROWS = 4  # rows of a map whose sums are added in order


def _array(binder: Binder, step: Step) -> None:
    number = step.params["number"]
    if number >= len(binder.arrays):
        raise ValueError(f"array {number} of {len(binder.arrays)}")
    shape = binder.arrays[number]
    source = binder.new_map(shape, planar=True)
    binder.images.append(source)
    if len(binder.images) != number + 1:
        raise ValueError("the arrays are not in the order of their numbers")
    size = binder.library.padded(shape.channels)
    arrays = ((np.ones(size, np.float32), np.zeros(size, np.float32)),)
    binder.add(Operation(INPUT, (source,), step.out, arrays=arrays), shape)


def _table(binder: Binder, step: Step) -> None:
    shape, table = binder.shape(step.inputs[0]), binder.packed.raw(step, "table")
    expect(table, shape[1:])
    binder.add(Operation(TABLE, step.inputs, step.out, arrays=((rows_of(binder, table), None),)), shape)


def _regroup(binder: Binder, step: Step) -> None:
    shape = binder.shape(step.inputs[0])
    first, count, channels = (step.params[name] for name in ("first", "count", "channels"))
    if first + count > shape.width * shape.channels or count % channels:
        raise ValueError(f"{count} values from {first} on of a map of {shape}, in groups of {channels}")
    out = shape._replace(width=count // channels, channels=channels)
    binder.add(Operation(REGROUP, step.inputs, step.out, p=(first,)), out)


def _split(binder: Binder, step: Step) -> None:
    """Split each pixel into ``parts`` pixels of a row, or join ``parts`` neighbouring pixels into one (kind "join")."""
    shape, parts = binder.shape(step.inputs[0]), step.params["parts"]
    if (shape.channels if step.kind == "split" else shape.width) % parts:
        raise ValueError(f"{shape} in {parts} parts")
    if step.kind == "split":
        out = shape._replace(width=shape.width * parts, channels=shape.channels // parts)
    else:
        out = shape._replace(width=shape.width // parts, channels=shape.channels * parts)
    binder.add(Operation(REGROUP, step.inputs, step.out, p=(0,)), out)


def _read_map(binder: Binder, step: Step) -> None:
    query, key, value = (binder.shape(index) for index in step.inputs)
    batch = max(query.batch, key.batch)
    if key[:3] != value[:3] or query.height != 1 or query.channels != key.channels:
        raise ValueError(f"queries {query}, keys {key}, values {value}")
    if min(query.batch, key.batch) not in (1, batch):
        raise ValueError(f"{query.batch} and {key.batch} images")
    lanes, parts = binder.library.padded(query.width), -(-key.height // _READ_ROWS)
    work = batch * parts * lanes * (2 + binder.library.padded(value.channels))
    operation = Operation(READ_MAP, step.inputs, step.out, p=(_READ_ROWS,), work=work)
    binder.add(operation, query._replace(batch=batch, channels=value.channels))


def _write_map(binder: Binder, step: Step) -> None:
    query, key, value, addend = (binder.shape(index) for index in step.inputs)
    expect(binder.packed.raw(step, "bias"), (value.channels,))
    if key[:3] != value[:3] or key.height != 1 or key.channels != query.channels or query.batch not in (1, key.batch):
        raise ValueError(f"queries {query}, keys {key}, values {value}")
    if addend[:2] != key[:2] or addend.width * addend.channels != key.width:
        raise ValueError(f"addends {addend} for keys {key}")
    shape = query._replace(batch=key.batch, channels=value.channels)
    if step.residual is None or binder.shape(step.residual) not in (shape, shape._replace(batch=1)):
        raise ValueError(f"no residual of {shape}")
    arrays = ((None, binder.packed.padded(step, "bias")),)
    binder.add(Operation(WRITE_MAP, step.inputs, step.out, step.residual, p=(addend.channels,), arrays=arrays), shape)


def _masks(binder: Binder, step: Step) -> None:
    shape, factors = (binder.shape(index) for index in step.inputs)
    if shape.channels != 4 * factors.channels or factors[:2] != (shape.batch, 1):
        raise ValueError(f"features {shape} with factors {factors}")
    if shape.channels % binder.width:
        raise ValueError(f"{shape.channels} channels, no multiple of {binder.width}")
    out = shape._replace(height=2 * shape.height, width=2 * shape.width, channels=factors.width)
    operation = Operation(MASKS, step.inputs, step.out)
    last = binder.operations[-1]
    if last.out == step.inputs[0] and _is_linear(last) and _reads(binder, last.out) == 1:
        # The features are computed row by row, so that they never leave the cache.
        operation = replace(operation, inputs=(last.inputs[0], step.inputs[1]), act=last.act, arrays=last.arrays)
        binder.operations.pop()
        del binder.maps[last.out]
    binder.add(operation, out, planar=True)


def _is_linear(operation: Operation) -> bool:
    """Whether it is a linear layer over the channels of every pixel, with one number for each weight and no factors."""
    alone = len(operation.inputs) == 1 and operation.residual is None
    return operation.kind == CONV and operation.p == (1, 1, 1, 0, 0, 1, 0, 1, True) and alone


def _reads(binder: Binder, index: int) -> int:
    """How many steps of the plan read a map."""
    return sum((*step.inputs, step.residual).count(index) for step in binder.packed.plan.steps)


#: The function for each kind of step.
PROMPT_STEPS: Mapping[str, Callable[[Binder, Step], None]] = {
    "array": _array,
    "table": _table,
    "regroup": _regroup,
    "split": _split,
    "join": _split,
    "read_map": _read_map,
    "write_map": _write_map,
    "masks": _masks,
}

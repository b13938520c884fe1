"""Bind the steps of SAM's mask decoder: attention between few tokens and a map, masks, further inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from .binding import INPUT, MASKS, READ_MAP, REGROUP, TABLE, WRITE_MAP, Builder, Operation, expect
from .binding_tokens import rows_of
from .plan import Step

_READ_ROWS = 4  # rows of a map whose sums are added in order


def _array(builder: Builder, step: Step) -> None:
    number = step.params["number"]
    if number >= len(builder.arrays):
        raise ValueError(f"array {number} of {len(builder.arrays)}")
    shape = builder.arrays[number]
    source = builder.new_map(shape, planar=True)
    builder.images.append(source)
    if len(builder.images) != number + 1:
        raise ValueError("the arrays are not in the order of their numbers")
    size = builder.library.padded(shape.channels)
    arrays = ((np.ones(size, np.float32), np.zeros(size, np.float32)),)
    builder.add(Operation(INPUT, (source,), step.out, arrays=arrays), shape)


def _table(builder: Builder, step: Step) -> None:
    shape, table = builder.shape(step.inputs[0]), builder.packed.raw(step, "table")
    expect(table, shape[1:])
    builder.add(Operation(TABLE, step.inputs, step.out, arrays=((rows_of(builder, table), None),)), shape)


def _regroup(builder: Builder, step: Step) -> None:
    shape = builder.shape(step.inputs[0])
    first, count, channels = (step.params[name] for name in ("first", "count", "channels"))
    if first + count > shape.width * shape.channels or count % channels:
        raise ValueError(f"{count} values from {first} on of a map of {shape}, in groups of {channels}")
    out = shape._replace(width=count // channels, channels=channels)
    builder.add(Operation(REGROUP, step.inputs, step.out, p=(first,)), out)


def _split(builder: Builder, step: Step) -> None:
    """Several pixels of each, or one of several neighbours in a row."""
    shape, parts = builder.shape(step.inputs[0]), step.params["parts"]
    if (shape.channels if step.kind == "split" else shape.width) % parts:
        raise ValueError(f"{shape} in {parts} parts")
    if step.kind == "split":
        out = shape._replace(width=shape.width * parts, channels=shape.channels // parts)
    else:
        out = shape._replace(width=shape.width // parts, channels=shape.channels * parts)
    builder.add(Operation(REGROUP, step.inputs, step.out, p=(0,)), out)


def _read_map(builder: Builder, step: Step) -> None:
    query, key, value = (builder.shape(index) for index in step.inputs)
    batch = max(query.batch, key.batch)
    if key[:3] != value[:3] or query.height != 1 or query.channels != key.channels:
        raise ValueError(f"queries {query}, keys {key}, values {value}")
    if min(query.batch, key.batch) not in (1, batch):
        raise ValueError(f"{query.batch} and {key.batch} images")
    lanes, parts = builder.library.padded(query.width), -(-key.height // _READ_ROWS)
    work = batch * parts * lanes * (2 + builder.library.padded(value.channels))
    operation = Operation(READ_MAP, step.inputs, step.out, p=(_READ_ROWS,), work=work)
    builder.add(operation, query._replace(batch=batch, channels=value.channels))


def _write_map(builder: Builder, step: Step) -> None:
    query, key, value, addend = (builder.shape(index) for index in step.inputs)
    expect(builder.packed.raw(step, "bias"), (value.channels,))
    if key[:3] != value[:3] or key.height != 1 or key.channels != query.channels or query.batch not in (1, key.batch):
        raise ValueError(f"queries {query}, keys {key}, values {value}")
    if addend[:2] != key[:2] or addend.width * addend.channels != key.width:
        raise ValueError(f"addends {addend} for keys {key}")
    shape = query._replace(batch=key.batch, channels=value.channels)
    if step.residual is None or builder.shape(step.residual) not in (shape, shape._replace(batch=1)):
        raise ValueError(f"no residual of {shape}")
    arrays = ((None, builder.packed.padded(step, "bias")),)
    builder.add(Operation(WRITE_MAP, step.inputs, step.out, step.residual, p=(addend.channels,), arrays=arrays), shape)


def _masks(builder: Builder, step: Step) -> None:
    shape, factors = (builder.shape(index) for index in step.inputs)
    if shape.channels != 4 * factors.channels or factors[:2] != (shape.batch, 1):
        raise ValueError(f"features {shape} with factors {factors}")
    if shape.channels % builder.width:
        raise ValueError(f"{shape.channels} channels, no multiple of {builder.width}")
    out = shape._replace(height=2 * shape.height, width=2 * shape.width, channels=factors.width)
    builder.add(Operation(MASKS, step.inputs, step.out), out, planar=True)


#: The function for each kind of step.
PROMPT_STEPS: Mapping[str, Callable[[Builder, Step], None]] = {
    "array": _array,
    "table": _table,
    "regroup": _regroup,
    "split": _split,
    "join": _split,
    "read_map": _read_map,
    "write_map": _write_map,
    "masks": _masks,
}

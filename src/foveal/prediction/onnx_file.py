"""Check an ONNX file before ONNX Runtime reads it, and read its metadata, without the package ``onnx``.

ONNX Runtime believes what a file says: it reserves memory for declared sizes, runs loops without end, and opens other
files that are named in it. Networks that Foveal exports need nothing of this, so it is refused.

Source: the message definitions of ONNX (onnx/onnx.proto) and the encoding of protocol buffers.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator
from pathlib import Path

from ..errors import CheckpointError

_MOST_PARTS = 1 << 19  # fields in a file, which take two seconds; EfficientViT-B0 has 5000
_MOST_VALUES = 1 << 28  # values of one tensor that an operator makes from a constant shape
_LOOPS = ("Loop", "Scan", "If", "SequenceMap")
#: Operators that make a tensor of a size that one of their inputs holds, and the place of this input.
_SIZED_BY = {"ConstantOfShape": 0, "Expand": 1, "Tile": 1, "Pad": 1, "Range": 1, "OneHot": 1, "Resize": 3}
_INT64, _EXTERNAL = 7, 1
_BITS = {1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 16: 16}  # by data_type

Field = tuple[int, "int | memoryview"]  # number of the field, and its value: a number, or bytes


class _RefusedError(Exception):
    """Why a file is refused."""


def check_onnx(source: str | Path | bytes, name: str) -> dict[str, str]:
    """Check an ONNX file and return its metadata.

    Args:
        source: path of the file, or its content.
        name: name of the file in messages.

    Raises:
        CheckpointError: no such file, not an ONNX file, or one with loops, weights in other files, sizes that do not
            fit its content, or metadata that is not UTF-8.
    """
    try:
        if isinstance(source, bytes):
            return _Walk().model(memoryview(source))
        with Path(source).open("rb") as file:
            if not file.seek(0, 2):
                raise CheckpointError(f"{name}: empty file")
            return _Walk().model(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))
    except _RefusedError as error:
        raise CheckpointError(f"{name}: {error}") from None
    except FileNotFoundError as error:
        raise CheckpointError(f"no file at {name}") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{name}: cannot be read ({error})") from error


class _Walk:
    """One pass over the parts of a file; numbers are those of the fields in onnx.proto."""

    def __init__(self) -> None:
        self.parts = 0
        self.sizes: dict[bytes, int] = {}  # product of the values of small tensors of integers, by name
        self.sized: list[tuple[str, bytes]] = []  # operators of _SIZED_BY, with the name of that input

    def model(self, data: memoryview) -> dict[str, str]:
        metadata: dict[str, str] = {}
        graphs = 0
        for number, value in self.fields(data):
            if number == 7:
                graphs += 1
                self.graph(_bytes(value))
            elif number == 14:
                entry = {key: bytes(_bytes(text)) for key, text in self.fields(_bytes(value)) if key in (1, 2)}
                try:
                    metadata[entry.get(1, b"").decode()] = entry.get(2, b"").decode()
                except UnicodeDecodeError as error:
                    raise _RefusedError(
                        f"its metadata is not UTF-8 ({error.reason}): damaged; export the model again"
                    ) from None
            elif number == 25:
                raise _RefusedError(
                    "has functions of its own, which Foveal's exports do not need; export the model again"
                )
        if not graphs:
            raise _RefusedError("not an ONNX file")
        for operator, source in self.sized:
            if self.sizes.get(source, 0) > _MOST_VALUES:
                raise _RefusedError(
                    f"its operator {operator} makes a tensor of {self.sizes[source]} values; at most 2^28"
                )
        return metadata

    def graph(self, data: memoryview) -> None:
        for number, value in self.fields(data):
            if number == 1:
                self.node(_bytes(value))
            elif number == 5:
                self.tensor(_bytes(value))
            elif number == 15:
                raise _RefusedError("has sparse weights, which Foveal's exports do not have; export the model again")

    def node(self, data: memoryview) -> None:
        inputs: list[bytes] = []
        outputs: list[bytes] = []
        operator, attributes = "", []
        for number, value in self.fields(data):
            if number == 1:
                inputs.append(bytes(_bytes(value)))
            elif number == 2:
                outputs.append(bytes(_bytes(value)))
            elif number == 4:
                operator = bytes(_bytes(value)).decode("ascii", "replace")
            elif number == 5:
                attributes.append(_bytes(value))
        if operator in _LOOPS:
            raise _RefusedError(
                f"has the operator {operator}; loops and branches may not end, Foveal's exports have none"
            )
        place = _SIZED_BY.get(operator)
        if place is not None and place < len(inputs):
            self.sized.append((operator, inputs[place]))
        for attribute in attributes:
            for number, value in self.fields(attribute):
                if number in (5, 10):
                    self.tensor(_bytes(value), outputs[0] if outputs else b"")
                elif number in (6, 11):
                    raise _RefusedError(
                        f"has a graph inside its operator {operator[:40]!r}; Foveal's exports have none"
                    )
                elif number in (22, 23):
                    raise _RefusedError(
                        "has sparse weights, which Foveal's exports do not have; export the model again"
                    )

    def tensor(self, data: memoryview, name: bytes = b"") -> None:
        """Check that a tensor holds its values; ``name``: of the constant that has it, default: its own."""
        dims: list[int] = []
        raw: memoryview | None = None
        kind, integers = 0, list[int]()
        for number, value in self.fields(data):
            if number == 1:
                dims += self.varints(value)
            elif number == 2 and isinstance(value, int):
                kind = value
            elif number == 7 and (isinstance(value, int) or len(value) <= 128):
                integers += self.varints(value)
            elif number == 8 and not name:
                name = bytes(_bytes(value))
            elif number == 9:
                raw = _bytes(value)
            elif number == 13 or (number == 14 and value == _EXTERNAL):
                raise _RefusedError(
                    "has weights in another file; Foveal's exports are one file: export the model again"
                )
        shown = name[:60].decode("utf-8", "replace")
        if any(dim < 0 for dim in dims):
            raise _RefusedError(f"its tensor {shown!r} has the shape {dims[:8]}: damaged")
        count = math.prod(dims)
        bits = _BITS.get(kind, 4)
        # Without raw_data every value takes at least a byte, except those of less than 8 bits and strings.
        if (raw is not None and count * bits > 8 * len(raw)) or count > 2 * len(data):
            raise _RefusedError(f"its tensor {shown!r} has the shape {dims[:8]}, but only {len(data)} bytes: damaged")
        if kind == _INT64 and count <= 16:
            if raw is not None:
                step = range(0, 8 * count, 8)
                integers = [int.from_bytes(raw[i : i + 8], "little", signed=True) for i in step]
            self.sizes[name] = math.prod(max(1, abs(value)) for value in integers)

    def fields(self, data: memoryview) -> Iterator[Field]:
        """Fields of a message, in the order of the file."""
        position = 0
        while position < len(data):
            self.parts += 1
            if self.parts > _MOST_PARTS:
                raise _RefusedError(f"has more than {_MOST_PARTS} parts: damaged, or not a network for Foveal")
            key, position = _varint(data, position)
            kind = key & 7
            if kind == 0:
                value, position = _varint(data, position)
            else:
                if kind == 2:
                    length, position = _varint(data, position)
                elif kind in (1, 5):
                    length = 8 if kind == 1 else 4
                else:
                    raise _RefusedError("not an ONNX file, or damaged")
                if length > len(data) - position:
                    raise _RefusedError("not an ONNX file, or truncated")
                value = data[position : position + length]
                position += length
            yield key >> 3, value

    def varints(self, value: int | memoryview) -> list[int]:
        """Values of a repeated field of signed integers: one of them, or several packed ones."""
        if isinstance(value, int):
            return [_signed(value)]
        values, position = [], 0
        while position < len(value):
            self.parts += 1
            if self.parts > _MOST_PARTS:
                raise _RefusedError(f"has more than {_MOST_PARTS} parts: damaged, or not a network for Foveal")
            one, position = _varint(value, position)
            values.append(_signed(one))
        return values


def _bytes(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise _RefusedError("not an ONNX file, or damaged")
    return value


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    """A number at a position of at most ten bytes, and the position after it."""
    if position < len(data) and data[position] < 0x80:
        return data[position], position + 1
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise _RefusedError("not an ONNX file, or truncated")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & ((1 << 64) - 1), position
    raise _RefusedError("not an ONNX file, or damaged")

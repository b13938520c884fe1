"""Write ONNX files without the package ``onnx``: protocol buffers of nodes and weights.

Source: the message definitions of ONNX (onnx/onnx.proto) and the encoding of protocol buffers.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_OPSET, _IR_VERSION = 17, 8
_TYPES = {np.dtype(np.float32): 1, np.dtype(np.int64): 7}  # ONNX's numbers


def field(number: int, value: int | bytes) -> bytes:
    """One field of a protocol buffer."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def tensor(name: str, array: NDArray[Any]) -> bytes:
    """A tensor of float32 or int64: dims = 1, data_type = 2, name = 8, raw_data = 9."""
    dims = b"".join(field(1, size) for size in array.shape)
    content = array.astype(array.dtype.newbyteorder("<")).tobytes()
    return dims + field(2, _TYPES[array.dtype]) + field(8, name.encode()) + field(9, content)


class GraphWriter:
    """Collects the parts of a graph."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def node(self, operator: str, inputs: Sequence[str], output: str | Sequence[str], **attributes: Any) -> str:
        """Add a node and return the name of its first output: input = 1, output = 2, op_type = 4, attribute = 5."""
        outputs = [output] if isinstance(output, str) else list(output)
        parts = [field(1, name.encode()) for name in inputs] + [field(2, name.encode()) for name in outputs]
        parts += [field(4, operator.encode()), *(field(5, _attribute(*each)) for each in attributes.items())]
        self._parts.append(field(1, b"".join(parts)))
        return outputs[0]

    def constant(self, name: str, values: Any, dtype: Any = np.int64) -> str:
        """Add a tensor that does not change, and return its name."""
        self._parts.append(field(5, tensor(name, np.asarray(values, dtype))))
        return name

    def input(self, name: str, shape: Sequence[int | str], dtype: Any = np.float32) -> str:
        """Add an input, whose sides are numbers or names, and return its name."""
        sides = (field(1, side) if isinstance(side, int) else field(2, side.encode()) for side in shape)
        dims = b"".join(field(1, side) for side in sides)
        kind = field(1, field(1, _TYPES[np.dtype(dtype)]) + field(2, dims))
        self._parts.append(field(11, field(1, name.encode()) + field(2, kind)))
        return name

    def output(self, name: str) -> None:
        """Make a tensor of float32 an output."""
        self._parts.append(field(12, field(1, name.encode()) + field(2, field(1, field(1, 1)))))

    def model(self) -> bytes:
        """The content of the file: ir_version = 1, graph = 7, opset_import = 8."""
        graph = field(2, b"graph") + b"".join(self._parts)
        return field(1, _IR_VERSION) + field(8, field(2, _OPSET)) + field(7, graph)


def _attribute(name: str, value: int | float | str | Sequence[int]) -> bytes:
    """An attribute: name = 1, f = 2, i = 3, s = 4, ints = 8, type = 20."""
    start = field(1, name.encode())
    if isinstance(value, float):
        return start + b"\x15" + struct.pack("<f", value) + field(20, 1)
    if isinstance(value, int):
        return start + field(3, value) + field(20, 2)
    if isinstance(value, str):
        return start + field(4, value.encode()) + field(20, 3)
    return start + b"".join(field(8, each) for each in value) + field(20, 7)

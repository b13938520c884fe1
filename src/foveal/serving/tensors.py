"""Tensors of the open inference protocol, version 2 (KServe): as numbers in JSON, and as binary data behind it."""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..files import parse_json
from .replies import Answer, RefusalError

HEADER = "Inference-Header-Content-Length"  #: bytes of the JSON, if binary data follows
_MAX_NUMBERS = 1 << 21  # in JSON: each becomes an object of Python
_DTYPES = {
    "BOOL": "bool", "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64",
    "INT8": "int8", "INT16": "int16", "INT32": "int32", "INT64": "int64",
    "FP16": "float16", "FP32": "float32", "FP64": "float64",
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True)
class Spec:
    """A tensor of a model.

    Attributes:
        name: of the tensor.
        datatype: in the protocol's words.
        shape: -1 for any size.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]

    def describe(self) -> dict[str, Any]:
        """As model metadata has it."""
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}


@dataclass(frozen=True)
class Inference:
    """A request.

    Attributes:
        id: of the client, for the response.
        inputs: tensors by name; those of BYTES have Python's bytes as elements.
        outputs: names of the wanted tensors; empty: all.
        binary: those of them that are wanted as binary data.
        all_binary: whether tensors without a wish are.
    """

    id: str = ""
    inputs: dict[str, NDArray[Any]] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    binary: Mapping[str, bool] = field(default_factory=dict)
    all_binary: bool = False

    def wants_binary(self, name: str) -> bool:
        """Whether the client asked for this output as binary data."""
        return self.binary.get(name, self.all_binary)


def read_inference(body: bytes, header: str | None, most: int) -> Inference:
    """Read a request.

    Args:
        body: JSON, then binary data.
        header: value of :data:`HEADER`, if it is there.
        most: number of elements that a tensor of BYTES may have; they are the contents of images.

    Raises:
        RefusalError: 400, one line about what is wrong.
    """
    length = len(body)
    if header is not None:
        if not (header.isascii() and header.isdecimal() and len(header) < 12 and int(header) <= len(body)):
            raise RefusalError(400, f"{HEADER}: {header[:40]!r} of {len(body)} bytes")
        length = int(header)
    text, binary = body[:length], memoryview(body)[length:]
    if text.count(b",") > _MAX_NUMBERS:
        raise RefusalError(413, f"more than {_MAX_NUMBERS} numbers in JSON: send binary data", "size")
    try:
        content = parse_json(text, len(text))
    except (ValueError, UnicodeDecodeError) as error:
        raise RefusalError(400, f"the body is no JSON: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(content, dict) or not isinstance(content.get("inputs"), list):
        raise RefusalError(400, "the body has no list of inputs")
    inputs, start = {}, 0
    for entry in content["inputs"]:
        name, array, used = _read_tensor(entry, binary[start:], most)
        if name in inputs:
            raise RefusalError(400, f"input {name[:80]!r} is there twice")
        inputs[name] = array
        start += used
    if start != len(binary):
        raise RefusalError(400, f"{len(binary) - start} bytes of binary data belong to no input")
    outputs = content.get("outputs", [])
    if not isinstance(outputs, list) or not all(
        isinstance(each, dict) and isinstance(each.get("name"), str) for each in outputs
    ):
        raise RefusalError(400, "outputs: give a list of objects with a name")
    wishes = {each["name"]: bool(_parameters(each).get("binary_data", False)) for each in outputs}
    all_binary = bool(_parameters(content).get("binary_data_output", False))
    number = content.get("id", "")
    return Inference(number if isinstance(number, str) else "", inputs, tuple(wishes), wishes, all_binary)


def _parameters(entry: dict[str, Any]) -> dict[str, Any]:
    found = entry.get("parameters", {})
    return found if isinstance(found, dict) else {}


def _read_tensor(entry: Any, binary: memoryview, most: int) -> tuple[str, NDArray[Any], int]:
    """Name and values of an input, and the number of its binary bytes."""
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise RefusalError(400, "inputs: give objects with name, datatype, shape and data")
    name, shape, datatype = entry["name"], entry.get("shape"), entry.get("datatype")
    label = f"input {name[:80]!r}"
    whole = isinstance(shape, list) and len(shape) <= 8 and all(type(side) is int and side >= 0 for side in shape)
    if not whole or not isinstance(shape, list):
        raise RefusalError(400, f"{label}: give its shape, up to 8 numbers of 0 or more")
    if not isinstance(datatype, str) or (datatype != "BYTES" and datatype not in _DTYPES):
        raise RefusalError(400, f"{label}: datatype {str(datatype)[:40]!r}; valid: {', '.join(_DTYPES)}, BYTES")
    count, size = math.prod(shape), _parameters(entry).get("binary_data_size")
    if datatype == "BYTES" and count > most:  # before each gets an object
        raise RefusalError(400, f"{label}: {count} images: give 1 to {most} at once")
    if size is None:
        return name, _from_json(entry.get("data"), datatype, shape, count, label), 0
    if type(size) is not int or not 0 <= size <= len(binary):
        raise RefusalError(400, f"{label}: binary_data_size {str(size)[:40]}, but {len(binary)} bytes are there")
    part = binary[:size]
    if datatype == "BYTES":
        return name, _elements(_split(part, count, label), shape), size
    dtype = np.dtype(_DTYPES[datatype]).newbyteorder("<")
    if size != count * dtype.itemsize:
        raise RefusalError(400, f"{label}: {size} bytes for shape {shape} of {datatype}")
    return name, np.frombuffer(part, dtype).reshape(shape).astype(dtype.newbyteorder("="), copy=False), size


def _from_json(data: Any, datatype: str, shape: list[int], count: int, label: str) -> NDArray[Any]:
    if not isinstance(data, list):
        raise RefusalError(400, f"{label}: no data")
    try:
        if datatype == "BYTES":
            values = [base64.b64decode(text, validate=True) for text in np.ravel(np.array(data, object)).tolist()]
            array = _elements(values, [len(values)])
        else:
            array = np.array(data)
            if array.dtype == object or array.dtype.kind not in "biuf":
                raise ValueError("no numbers")
            with np.errstate(over="ignore", invalid="ignore"):
                converted = array.astype(_DTYPES[datatype])
            rounded = array.dtype.kind == converted.dtype.kind == "f"
            if not (np.isfinite(converted) | ~np.isfinite(array) if rounded else converted == array).all():
                raise ValueError(f"values that {datatype} does not have")
            array = converted
    except (ValueError, TypeError, OverflowError, binascii.Error) as error:
        raise RefusalError(400, f"{label}: data cannot be read as {datatype} ({str(error)[:100]})") from None
    if array.size != count:
        raise RefusalError(400, f"{label}: {array.size} values for shape {shape}")
    return array.reshape(shape)


def _split(part: memoryview, count: int, label: str) -> list[bytes]:
    """Elements of BYTES: each has its length, 4 bytes, before it."""
    values, start = [], 0
    while start + 4 <= len(part) and len(values) < count:
        length = int.from_bytes(part[start : start + 4], "little")
        if start + 4 + length > len(part):
            break
        values.append(bytes(part[start + 4 : start + 4 + length]))
        start += 4 + length
    if start != len(part) or len(values) != count:
        raise RefusalError(400, f"{label}: its binary data are not {count} elements with their lengths")
    return values


def _elements(values: Sequence[bytes], shape: list[int]) -> NDArray[Any]:
    array = np.empty(len(values), object)
    array[:] = values
    return array.reshape(shape)


def write_inference(model: str, asked: Inference, outputs: Mapping[str, NDArray[Any]]) -> Answer:
    """The answer with tensors, in JSON or as binary data as the client asked for."""
    entries, parts = [], []
    for name, array in outputs.items():
        entry: dict[str, Any] = {"name": name, "datatype": _NAMES[str(array.dtype)], "shape": list(array.shape)}
        if asked.wants_binary(name):
            content = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
            entry["parameters"] = {"binary_data_size": len(content)}
            parts.append(content)
        else:
            entry["data"] = array.ravel().tolist()
        entries.append(entry)
    head: dict[str, Any] = {"model_name": model, "model_version": "1", "outputs": entries}
    if asked.id:
        head["id"] = asked.id
    text = json.dumps(head, separators=(",", ":")).encode()
    if not parts:
        return Answer(text, "application/json")
    return Answer(text + b"".join(parts), "application/octet-stream", {HEADER: str(len(text))})

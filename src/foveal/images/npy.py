"""NPY files, the format of ``numpy.save``: their size is checked before the values are read; nothing is unpickled."""

from __future__ import annotations

import io
import math
import tokenize
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

NPY = ".npy"
_MAGIC = b"\x93NUMPY"
_DAMAGE = (
    ValueError, TypeError, EOFError, SyntaxError, RecursionError, OverflowError, MemoryError, AttributeError,
    tokenize.TokenError,
)  # fmt: skip


def is_npy(source: object) -> TypeGuard[str | Path | bytes]:
    """Whether a source is a path with the suffix of an NPY file, or the content of such a file."""
    if isinstance(source, bytes):
        return source.startswith(_MAGIC)
    return isinstance(source, str | Path) and Path(source).suffix.lower() == NPY


def read_npy(source: str | Path | bytes, name: str, max_values: int) -> NDArray[Any]:
    """The array of an NPY file.

    Args:
        source: path or content.
        name: of the file, for messages.
        max_values: largest number of values.

    Raises:
        InputError: missing, damaged, truncated, too large, or an array of Python objects.
    """
    with _one_line_errors(name), _open(source) as file:
        shape, dtype = _header(file)
        length = file.seek(0, io.SEEK_END)
        if dtype.hasobject or dtype.names or dtype.kind not in "uif":
            raise InputError(f"{name}: an array of {dtype}; images are arrays of uint8, uint16 or float32")
        if math.prod(shape) > max_values:
            raise InputError(f"{name}: {math.prod(shape)} values are above the limit of {max_values} for one file")
        if math.prod(shape) * dtype.itemsize > length:
            raise InputError(f"{name}: truncated, its header says {'x'.join(map(str, shape))} values of {dtype}")
        file.seek(0)
        return np.load(file, allow_pickle=False)


def npy_shape(source: str | Path | bytes, name: str) -> tuple[int, ...]:
    """The shape of the array of an NPY file, from its header alone.

    Raises:
        InputError: missing or damaged.
    """
    with _one_line_errors(name), _open(source) as file:
        return _header(file)[0]


def npy_layout(file: BinaryIO | FileIO, name: str) -> tuple[tuple[int, ...], np.dtype, int]:
    """Shape and type of the array of an open NPY file, and where its values begin, to read parts of it.

    Raises:
        InputError: damaged, truncated, or an array in Fortran's order or of Python objects.
    """
    with _one_line_errors(name):
        shape, dtype, by_columns = _layout(file)
        start = file.tell()
        length = file.seek(0, io.SEEK_END)
        if by_columns:
            raise InputError(f"{name}: an array in Fortran's order: save numpy.ascontiguousarray(array)")
        if dtype.hasobject or dtype.names or dtype.kind not in "uif":
            raise InputError(f"{name}: an array of {dtype}; images are arrays of uint8, uint16 or float32")
        if start + math.prod(shape) * dtype.itemsize > length:
            raise InputError(f"{name}: truncated, its header says {'x'.join(map(str, shape))} values of {dtype}")
        return shape, dtype, start


@contextmanager
def _one_line_errors(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"{name}: {error.strerror or error}") from error
    except _DAMAGE as error:
        raise InputError(f"{name}: not an NPY file, or damaged ({' '.join(str(error).split())[:100]})") from error


def _open(source: str | Path | bytes) -> BinaryIO:
    return io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb")


def _header(file: Any) -> tuple[tuple[int, ...], np.dtype]:
    shape, dtype, _ = _layout(file)
    return shape, dtype


def _layout(file: Any) -> tuple[tuple[int, ...], np.dtype, bool]:
    """Shape, type, and whether columns are stored one after the other; the values begin where the file then is."""
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(file)
    if version not in read:
        raise ValueError(f"version {version}")
    shape, by_columns, dtype = read[version](file)
    if any(side < 0 for side in shape):
        raise ValueError(f"shape {shape}")
    return shape, dtype, by_columns

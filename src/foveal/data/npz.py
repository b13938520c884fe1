"""Read .npz files: what one declares is compared with a limit before memory is allocated."""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from pathlib import Path

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

_ROOM = 1 << 16  # bytes for headers and names
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def read_npz(path: str | Path, largest: int) -> dict[str, NDArray]:
    """Read all arrays of an .npz file, without objects.

    Args:
        path: the file.
        largest: bytes that all arrays together may have.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no .npz file, damaged, or larger than ``largest``.
    """
    with Path(path).open("rb") as file:
        if file.seek(0, io.SEEK_END) > largest + _ROOM:
            raise ValueError(f"larger than {largest} bytes")
        file.seek(0)
        try:
            with zipfile.ZipFile(file) as archive:
                if sum(entry.file_size for entry in archive.infolist()) > largest + _ROOM:
                    raise ValueError(f"unpacks to more than {largest} bytes")
                return {entry.filename.removesuffix(".npy"): _read(archive, entry) for entry in archive.infolist()}
        except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, zlib.error) as error:
            raise ValueError(str(error)) from error


def _read(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> NDArray:
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others unpack without a limit
        raise ValueError("compressed by a method that numpy does not use")
    with archive.open(entry) as file:
        content = file.read(entry.file_size)  # not archive.read, which unpacks more than the entry declares
    stream = io.BytesIO(content)
    version = npy.read_magic(stream)
    if version not in _HEADERS:
        raise ValueError(f"version {version} of the header is unknown")
    shape, fortran_order, dtype = _HEADERS[version](stream)
    offset = stream.tell()
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(content) - offset:
        raise ValueError(f"{dtype} {shape} is not what the file holds")
    flat = np.frombuffer(content, dtype, offset=offset)
    return flat.reshape(shape, order="F" if fortran_order else "C").copy()

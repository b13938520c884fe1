"""PNG files of kinds that Pillow does not write."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk with its checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def header(width: int, height: int, bits: int, colour: int, *, interlaced: bool = False) -> bytes:
    """The signature and the chunk of the size."""
    size = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size)


def write_tall(path: Path, height: int, width: int) -> NDArray[np.uint8]:
    """Write an RGB image with every kind of filter, of 64 rows that repeat if each filter had nothing above it.

    Returns:
        The filtered bytes of the 64 rows, the number of the filter first.
    """
    rows = np.random.default_rng(0).integers(0, 3, (64, 1 + 3 * width), np.uint8)
    rows[:, 0] = np.arange(64) % 5
    packer = zlib.compressobj(1)
    with path.open("wb") as file:
        file.write(header(width, height, 8, 2))
        for _ in range(height // 64):
            file.write(chunk(b"IDAT", packer.compress(rows.tobytes())))
        file.write(chunk(b"IDAT", packer.flush()) + chunk(b"IEND", b""))
    return rows

"""Files of arrays: what a file declares is checked before memory is allocated."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foveal.data.npz import read_npz

LARGEST = 1 << 16


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_arrays_come_back(tmp_path: Path, write: Any) -> None:
    arrays = {
        "plain": np.arange(12, dtype=np.float16).reshape(3, 4),
        "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "text": np.array("model"),
        "empty": np.zeros((0, 3)),
    }
    write(tmp_path / "a.npz", **arrays)
    found = read_npz(tmp_path / "a.npz", LARGEST)
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype
        assert found[name].flags.writeable


def npy(shape: str, content: bytes = b"", descr: str = "'<f4'") -> bytes:
    """A .npy file with any declared shape."""
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}".encode()
    header += b" " * (63 - (len(header) + 10) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content


def archive(content: bytes, method: int = zipfile.ZIP_DEFLATED, claimed: int = 0) -> bytes:
    """An .npz file with one array, whose entry may claim another size."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        file.writestr("features.npy", content)
    data = buffer.getvalue()
    return data.replace(struct.pack("<I", len(content)), struct.pack("<I", claimed or len(content)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not a zip file", "not a zip file"),
        (b"0" * 10 * LARGEST, "larger than"),
        (archive(npy("(1 << 40,)")), "malformed|Cannot parse"),
        (archive(npy("(1099511627776,)")), r"float32 \(1099511627776,\) is not what the file holds"),
        (archive(npy("(-1,)", b"0000")), "is not what the file holds"),
        (archive(npy("(3,)", b"0" * 8)), "is not what the file holds"),
        (archive(npy("(1,)", b"0" * 8, "'|O'")), "is not what the file holds"),
        (archive(npy("(1000000000000,)", b"", "'|V0'")), "itemsize|is not what|zero"),
        (archive(npy(f"({1 << 23},)", b"\0" * (1 << 25))), "unpacks to more than"),
        (archive(npy(f"({1 << 23},)", b"\0" * (1 << 25)), claimed=1000), "Bad CRC|is not what"),
        (archive(npy("(2,)", b"0" * 8), zipfile.ZIP_LZMA), "compressed by a method"),
        (archive(b"nothing"), "magic string"),
    ],
)
def test_damaged_and_hostile_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.npz"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=message):
            read_npz(path, LARGEST)
        assert tracemalloc.get_traced_memory()[1] < 1 << 24
    finally:
        tracemalloc.stop()

"""Malicious and damaged weight files: pickles that call functions, bombs, invalid headers, flipped bits."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from pathlib import Path

import torch

BOMBS = ("bytearray", "legacy bytearray", "zip", "overlapping zip", "storage", "header", "claim")


class Evil:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def flipped(content: bytes, place: int) -> bytes:
    """``content`` with one bit of the byte at ``place`` flipped."""
    return content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :]


def bytearray_bomb(size: int, before: bytes = b"") -> bytes:
    """A pickle that creates a bytearray of ``size``; the string ``before`` is loaded first and dropped."""
    string = b"X" + struct.pack("<I", len(before)) + before + b"0" if before else b""
    return b"\x80\x02" + string + b"cbuiltins\nbytearray\n\x8a\x08" + struct.pack("<q", size) + b"\x85R."


def zip_archive(**members: bytes) -> bytes:
    """A compressed archive in the format of torch; the argument ``data_pkl`` is the member ``data.pkl``."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"archive/{name.replace('_pkl', '.pkl')}", content)
    return buffer.getvalue()


def bomb(kind: str) -> bytes:
    """A small weight file that needs much memory to load; ``kind`` is one of ``BOMBS``."""
    if kind == "bytearray":
        return zip_archive(data_pkl=bytearray_bomb(8 << 30), version=b"3\n")
    if kind == "legacy bytearray":
        return bytearray_bomb(8 << 30)
    if kind == "zip":
        buffer = io.BytesIO()
        torch.save({"w": torch.zeros(25 << 20)}, buffer)
        with zipfile.ZipFile(buffer) as archive:
            members = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
        return zip_archive(**members)
    if kind == "overlapping zip":  # a thousand directory entries that share one megabyte
        return _many_entries(zip_archive(data_pkl=b"\x80\x02}.", version=b"3\n", data=bytes(1 << 20)), 1000)
    if kind == "storage":  # the old format declares how many numbers follow, but none do
        buffer = io.BytesIO()
        torch.save({"w": torch.zeros(77)}, buffer, _use_new_zipfile_serialization=False)
        assert buffer.getvalue().count(b"K\x4d") == 2  # the size as a one-byte number, in the storage and in the shape
        return buffer.getvalue().replace(b"K\x4d", b"\x8a\x05\0\0\0\x80\0")
    if kind == "header":
        return safetensors_file(b'{"a":' + b" " * (90 << 20) + b"{}}")
    return safetensors_file({"a": {"dtype": "F32", "shape": [1 << 31], "data_offsets": [0, 8 << 30]}}, bytes(64))


def _many_entries(archive: bytes, count: int) -> bytes:
    """The archive with the last directory entry repeated; all repetitions refer to the same bytes of the file."""
    end = archive.index(b"PK\x05\x06")
    total, size, start = struct.unpack("<HII", archive[end + 10 : end + 20])
    last = archive[archive.rindex(b"PK\x01\x02") : end]
    tail = struct.pack(
        "<4sHHHHIIH", b"PK\x05\x06", 0, 0, total + count, total + count, size + count * len(last), start, 0
    )
    return archive[:end] + last * count + tail


def safetensors_file(header: dict | bytes, body: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file of this header and body; ``length`` is the declared length of the header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


_ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
_TWICE = '"a":' + json.dumps(_ONE)
HOSTILE_SAFETENSORS = {
    "header beyond the file": safetensors_file(b'{"a": {"dtype"', b"", 1 << 40),
    "overlap": safetensors_file(
        {"a": {**_ONE, "data_offsets": [0, 4]}, "b": {**_ONE, "data_offsets": [2, 6]}}, b"123456"
    ),
    "same bytes twice": safetensors_file({"a": _ONE, "b": _ONE}, b"1234"),
    "hole": safetensors_file({"a": _ONE, "b": {**_ONE, "data_offsets": [8, 12]}}, b"123456789abc"),
    "duplicate": safetensors_file(f"{{{_TWICE},{_TWICE}}}".encode(), b"1234"),
    "shape overflow": safetensors_file({"a": {**_ONE, "shape": [1 << 62, 4]}}, b"1234"),
    "shape too large": safetensors_file({"a": {**_ONE, "shape": [1 << 40]}}, b"1234"),
    "negative offset": safetensors_file({"a": {**_ONE, "data_offsets": [-4, 0]}}, b"1234"),
    "backward": safetensors_file({"a": {**_ONE, "data_offsets": [4, 0]}}, b"1234"),
    "bytes left over": safetensors_file({"a": _ONE}, b"12345678"),
    "bytes missing": safetensors_file({"a": {**_ONE, "shape": [2], "data_offsets": [0, 8]}}, b"1234"),
    "unknown type": safetensors_file({"a": {**_ONE, "dtype": "F33"}}, b"1234"),
    "no JSON": safetensors_file(b"{not json}"),
    "no UTF-8": safetensors_file(b'{"\xff": 1}'),
    "nested": safetensors_file(b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"),
    "no object": safetensors_file(b"{}{}"),
    "no tensors": b"",
    "three bytes": b"\x01\x02\x03",
    "half an archive": b"PK\x03\x04 half an archive",
}

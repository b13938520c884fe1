"""Check the structure of PNG and BMP files before Pillow reads them."""

from __future__ import annotations

import io
import struct
from typing import BinaryIO

from ..errors import InputError

_MAX_CHUNKS = 200_000  # besides those of pixels
_PALETTE = 3  # colour type of PNG
_RUN_LENGTHS = (1, 2)  # compression of BMP: 8 and 4 bits per pixel
_LONGEST_RUN = 255  # pixels for two bytes
_MAX_RUN_BYTES = 2 << 20  # Pillow decodes run lengths in Python, several seconds for so many


def check_png(file: BinaryIO, name: str) -> None:
    """Check that a PNG with palette colours has a palette, and that its chunks are few enough to read.

    The file's position is kept; damage elsewhere is left to the decoder.

    Raises:
        InputError: no palette, half a palette, or too many chunks.
    """
    position = file.tell()
    file.seek(0)
    head = file.read(33)
    palette = -1
    count = 0
    while len(row := file.read(8)) == 8 and row[4:] != b"IEND":
        length, kind = struct.unpack(">I4s", row)
        if kind == b"PLTE":
            palette = length
        elif kind == b"IDAT" and palette < 0 and head[25:26] == bytes([_PALETTE]):
            break
        count += kind != b"IDAT"
        if count > _MAX_CHUNKS:
            raise InputError(f"{name}: more than {_MAX_CHUNKS} chunks besides those of pixels")
        file.seek(length + 4, io.SEEK_CUR)
    file.seek(position)
    if head[25:26] == bytes([_PALETTE]) and (palette <= 0 or palette % 3):
        what = (
            "without a palette (chunk PLTE)" if palette < 0 else f"with a palette of {palette} bytes, not 3 per entry"
        )
        raise InputError(f"{name}: damaged, a palette image {what}")


def check_bmp(file: BinaryIO, name: str) -> None:
    """Check that the data of a run-length BMP can hold its pixels; the file's position is kept.

    Raises:
        InputError: it cannot, or it is too long to decode.
    """
    position = file.tell()
    length = file.seek(0, io.SEEK_END)
    file.seek(0)
    head = file.read(34)
    file.seek(position)
    if len(head) < 34 or struct.unpack_from("<I", head, 14)[0] < 40:
        return
    start, width, height, compression = *struct.unpack_from("<I", head, 10), *struct.unpack_from("<ii4xI", head, 18)
    if compression not in _RUN_LENGTHS:
        return
    data = max(0, length - start)
    if data > _MAX_RUN_BYTES:
        raise InputError(
            f"{name}: {data >> 20} MiB of run lengths, above the limit of {_MAX_RUN_BYTES >> 20}; save it as PNG"
        )
    if abs(width * height) > data * _LONGEST_RUN // 2:
        raise InputError(f"{name}: damaged, {data} bytes of run lengths cannot hold {width}x{abs(height)} pixels")

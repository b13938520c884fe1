"""Decode PNG files (ISO/IEC 15948) row by row, in memory that does not depend on their height.

The chunks are read and unpacked here; Pillow undoes the filters of a band of rows, and converts it as it would convert
the whole image, because each band is given to it as a PNG file of its own.
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import PngImagePlugin

from . import chunks, decoding
from .bands import Bands
from .row_raster import BAND_BYTES

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_RGB = 2
#: Bits and colour type of a PNG with so many bytes per pixel. Filters depend on this number only, so a band of any
#: image is unfiltered as one of these.
_FORMAT_OF_STEP = {1: (8, 0), 2: (8, 4), 3: (8, 2), 4: (8, 6), 6: (16, 2), 8: (16, 6)}
_ANIMATION = (b"acTL", b"fcTL", b"fdAT")
_COPIED_BYTES = 16 << 20  # of chunks other than those of pixels
_READ_BYTES = 1 << 20
_ROW_BYTES = 64 << 20  # of one row


@dataclass(frozen=True)
class PngHeader:
    """What a PNG file says before and behind its pixels.

    Attributes:
        width: in pixels.
        height: in pixels.
        bits: per channel.
        colour: type of the colours, a key of the standard's table 11.1.
        others: the chunks other than those of pixels, as they are stored.
        pixels: position of the first chunk of pixels.
        why_whole: why the file cannot be decoded row by row; empty if it can.
    """

    width: int
    height: int
    bits: int
    colour: int
    others: bytes
    pixels: int
    why_whole: str


def read_png_header(file: BinaryIO, name: str) -> PngHeader:
    """Read everything but the pixels of a PNG file.

    Raises:
        InputError: damaged or truncated.
    """
    with decoding.one_line_errors(name):
        chunks.check_png(file, name)
        file.seek(8)
        length, kind = _read_head(file)
        data = _read_data(file, kind, min(length, 64))
        if kind != b"IHDR" or length != 13:
            raise OSError("it does not begin with its size")
        width, height, bits, colour, method, filters, interlace = struct.unpack(">IIBBBBB", data)
        if not width or not height or colour not in _CHANNELS or method or filters or interlace > 1:
            raise OSError("unknown kind of PNG")
        if -(-width * bits * _CHANNELS[colour] // 8) > _ROW_BYTES:
            raise OSError(f"rows of {width} pixels")
        others, pixels, reason = _read_others(file)
        with PngImagePlugin.PngImageFile(io.BytesIO(_png(1, 1, bits, colour, others, bytes(16)))) as image:
            orientation = decoding.orientation_of(image)
        reason = "it is interlaced" if interlace else reason
        reason = "its EXIF data say that it is rotated or mirrored" if orientation != 1 else reason
        return PngHeader(width, height, bits, colour, others, pixels, reason)


def _read_others(file: BinaryIO) -> tuple[bytes, int, str]:
    """The chunks that are not of pixels, the position of the first one of pixels, and why it is no plain image."""
    others, size, pixels, reason, kind = [], 0, 0, "", b""
    while True:
        start = file.tell()
        length, kind = _read_head(file)
        if kind == b"IEND":
            break
        pixels = pixels or (start if kind == b"IDAT" else 0)
        if kind in _ANIMATION:
            reason = "it is animated"
        elif kind != b"IDAT" and size + length > _COPIED_BYTES:
            reason = f"it has more than {_COPIED_BYTES >> 20} MiB of data beside the pixels"
        elif kind != b"IDAT":
            size += length
            others.append(_chunk(kind, _read_data(file, kind, length)))
            continue
        file.seek(length + 4, io.SEEK_CUR)
    if not pixels:
        raise OSError("no pixels")
    return b"".join(others), pixels, reason


class PngRows:
    """Decodes a PNG file in bands; see :class:`~.row_raster.RowDecoder`.

    Args:
        file: the file, open.
        header: of it, one that can be decoded row by row.
        bands: what a model takes: the rows are converted to it.
        name: of the file, for messages.

    Raises:
        InputError: the image has other bands than ``bands``, or cannot be converted to them.
    """

    def __init__(self, file: BinaryIO, header: PngHeader, bands: Bands, name: str) -> None:
        self._file, self._header, self._bands, self._name = file, header, bands, name
        bits = header.bits * _CHANNELS[header.colour]
        self._step, self._row_bytes = -(-bits // 8), -(-bits * header.width // 8)
        self._as_stored = (header.bits, header.colour) == (8, _RGB) and b"tRNS" not in header.others
        example = self._convert(np.zeros((1, -(-bits // 8)), np.uint8), 1)
        self.shape = (header.height, header.width, example.shape[2])
        self.dtype = example.dtype
        self.restart()

    def restart(self) -> None:
        """Continue with the first row."""
        self._file.seek(self._header.pixels)
        self._inflate = zlib.decompressobj()
        self._left, self._checksum, self._ended = 0, 0, False  # of the chunk that is being read
        self._above = np.zeros((1, self._row_bytes), np.uint8)
        self._row = 0

    def decode(self, first_wanted: int) -> tuple[int, NDArray[Any] | None]:
        """Decode the next band of rows."""
        count = min(max(1, BAND_BYTES // (self._row_bytes + 1)), self._header.height - self._row)
        rows = self._unfilter(self._unpack(count * (self._row_bytes + 1)), count)
        self._above, self._row = rows[-1:].copy(), self._row + count
        if self._row == self._header.height:
            self._check_rest()
        if self._row <= first_wanted:
            return self._row, None
        return self._row, self._convert(rows, self._header.width)

    def _unpack(self, size: int) -> bytes:
        """The next bytes of the unpacked rows, each of which begins with the number of its filter."""
        parts, missing = [], size
        waiting = self._inflate.unconsumed_tail
        while missing:
            if not waiting:
                waiting = self._read_pixels()
                if not waiting or self._inflate.eof:
                    raise OSError("image file is truncated")
            part = self._inflate.decompress(waiting, missing)
            waiting = self._inflate.unconsumed_tail
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    def _read_pixels(self) -> bytes:
        """The next packed bytes; empty behind the last chunk of pixels. Checksums are compared."""
        while not self._left and not self._ended:
            length, kind = _read_head(self._file)
            if kind != b"IDAT":
                self._ended = True
            else:
                self._left, self._checksum = length, zlib.crc32(kind)
                if not length:
                    self._end_chunk()
        if self._ended:
            return b""
        data = self._file.read(min(self._left, _READ_BYTES))
        if not data:
            raise OSError("image file is truncated")
        self._left, self._checksum = self._left - len(data), zlib.crc32(data, self._checksum)
        if not self._left:
            self._end_chunk()
        return data

    def _end_chunk(self) -> None:
        if int.from_bytes(self._file.read(4), "big") != self._checksum:
            raise OSError("wrong checksum of IDAT")

    def _check_rest(self) -> None:
        """Read what follows the last row, to compare its checksum."""
        while self._read_pixels():
            pass

    def _unfilter(self, filtered: bytes, count: int) -> NDArray[np.uint8]:
        """The bytes of the rows, ``(count, bytes)``."""
        bits, colour = _FORMAT_OF_STEP[self._step]
        width = self._row_bytes // self._step
        content = _png(width, count + 1, bits, colour, b"", b"\0" + self._above.tobytes() + filtered)
        image = PngImagePlugin.PngImageFile(io.BytesIO(content))
        if bits == 8:
            image.load()
            return np.asarray(image)[1:].reshape(count, self._row_bytes)
        image.load()
        again = PngImagePlugin.PngImageFile(io.BytesIO(content))
        return decoding.read_16_bit_colours(image, again)[1:].astype(">u2").reshape(count, -1).view(np.uint8)

    def _convert(self, rows: NDArray[np.uint8], width: int) -> NDArray[Any]:
        """The bands that a model takes of rows of ``width`` pixels, ``(rows, width, C)``."""
        if self._as_stored and self._bands.count in (0, 3) and self._bands.dtype in ("", "uint8"):
            return rows.reshape(len(rows), width, 3)
        unfiltered = np.pad(rows, ((0, 0), (1, 0))).tobytes()
        header = self._header
        content = _png(width, len(rows), header.bits, header.colour, header.others, unfiltered)
        return self._bands.read(content, name=self._name)


def _png(width: int, height: int, bits: int, colour: int, others: bytes, filtered: bytes) -> bytes:
    """A PNG file of these rows, not compressed."""
    size = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    packed = _chunk(b"IDAT", zlib.compress(filtered, 0))
    return b"".join((_SIGNATURE, _chunk(b"IHDR", size), others, packed, _chunk(b"IEND", b"")))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))


def _read_head(file: BinaryIO) -> tuple[int, bytes]:
    """Length and kind of the next chunk."""
    head = file.read(8)
    if len(head) < 8:
        raise OSError("image file is truncated")
    return int.from_bytes(head[:4], "big"), head[4:]


def _read_data(file: BinaryIO, kind: bytes, length: int) -> bytes:
    data, checksum = file.read(length), file.read(4)
    if len(data) < length or len(checksum) < 4:
        raise OSError("image file is truncated")
    if zlib.crc32(kind + data) != int.from_bytes(checksum, "big"):
        raise OSError(f"wrong checksum of {kind.decode('ascii', 'replace')}")
    return data

"""Write pictures: band by band with alpha, 16 bits and colour profile, or from a Pillow image.

Band by band, a PNG of any size can be written without all of it in memory.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import InputError
from ..files import atomic_write

#: Largest side in pixels by suffix: the limits of the formats.
WRITTEN = {".png": 1 << 31, ".jpg": 65_500, ".jpeg": 65_500, ".webp": 16_383, ".tif": 1 << 31, ".tiff": 1 << 31}
MAX_IN_MEMORY = 150_000_000  #: largest number of pixels in formats other than PNG, which need several copies in memory
_ROWS = 64  # filtered at a time, at least: few, since the filter works on four arrays of 16 bits
_BLOCK = 1 << 19  # bytes filtered at a time, at least: a block begins without the history of the one before
_LEVEL = 2  # of photographs, 6 takes five times as long for files that are 4 % smaller
_MAX_THREADS = 4  # each holds a block and the filter's arrays


@dataclass(frozen=True)
class Canvas:
    """Size and format of a picture to write.

    Attributes:
        height: in pixels.
        width: in pixels.
        channels: 1 for grey, 2 for grey with alpha, 3 for RGB, 4 for RGB with alpha.
        bits: bits per channel, 8 or 16.
        icc: colour profile; empty for none.
        palette: of a PNG with one channel of indices, three bytes for each; empty for none.
    """

    height: int
    width: int
    channels: int = 3
    bits: int = 8
    icc: bytes = b""
    palette: bytes = b""

    def check(self, path: Path) -> None:
        """Raise an InputError if the format of ``path`` cannot store the picture."""
        suffix = path.suffix.lower()
        if suffix not in WRITTEN:
            raise InputError(f"{path}: pictures are written as {', '.join(WRITTEN)}")
        if suffix == ".png":
            return
        if self.bits == 16:
            raise InputError(f"{path}: 16 bits per channel are written as .png only")
        if self.channels in (2, 4) and suffix in (".jpg", ".jpeg"):
            raise InputError(f"{path}: JPEG has no transparency; write a .png")
        if max(self.height, self.width) > WRITTEN[suffix] or self.height * self.width > MAX_IN_MEMORY:
            raise InputError(f"{path}: {self.width}x{self.height} (W x H) is too large for {suffix}; write a .png")


def write_picture(path: str | Path, canvas: Canvas, bands: Iterable[NDArray[Any]]) -> None:
    """Write a picture from its bands, top to bottom; if that fails, no partial file is left.

    Args:
        path: its suffix selects the format, one of :data:`WRITTEN`.
        canvas: size and format of the whole picture.
        bands: ``(rows, width, channels)`` each, uint8 or uint16 according to ``canvas.bits``.

    Raises:
        InputError: the format cannot store the picture, or the file cannot be written.
    """
    path = Path(path)
    canvas.check(path)
    with atomic_write(path) as temporary:
        if path.suffix.lower() == ".png":
            with temporary.open("wb") as file:
                _write_png(file, canvas, bands)
            return
        pixels = np.concatenate(list(bands))
        options: dict[str, Any] = {"icc_profile": canvas.icc} if canvas.icc else {}
        if path.suffix.lower() in (".jpg", ".jpeg"):
            options |= {"quality": 95, "subsampling": 0}
        Image.fromarray(pixels[..., 0] if canvas.channels == 1 else pixels).save(temporary, **options)


def png_content(canvas: Canvas, bands: Iterable[NDArray[Any]]) -> bytes:
    """The content of the PNG file that :func:`write_picture` would write."""
    file = io.BytesIO()
    _write_png(file, canvas, bands)
    return file.getvalue()


def _write_png(file: BinaryIO, canvas: Canvas, bands: Iterable[NDArray[Any]]) -> None:
    """Write a PNG (ISO/IEC 15948). Without a palette, all rows use the Paeth filter, the best one for photographs."""

    def chunk(kind: bytes, data: bytes) -> None:
        file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))

    colour = 3 if canvas.palette else {1: 0, 2: 4, 3: 2, 4: 6}[canvas.channels]
    step = canvas.channels * canvas.bits // 8  # bytes per pixel
    file.write(b"\x89PNG\r\n\x1a\n")
    chunk(b"IHDR", struct.pack(">IIBBBBB", canvas.width, canvas.height, canvas.bits, colour, 0, 0, 0))
    if canvas.icc:
        chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(canvas.icc))
    if canvas.palette:
        chunk(b"PLTE", canvas.palette)
        step = 0
    chunk(b"IDAT", b"\x78\x01")  # header of a zlib stream (RFC 1950): 32 KiB of history, fast compression
    checksum = zlib.adler32(b"")
    for filtered, compressed in _compressed_blocks(_row_blocks(canvas, bands), step):
        checksum = zlib.adler32(filtered, checksum)
        chunk(b"IDAT", compressed)
    chunk(b"IDAT", b"\x03\x00" + checksum.to_bytes(4, "big"))  # an empty last block ends the stream
    chunk(b"IEND", b"")


def _row_blocks(canvas: Canvas, bands: Iterable[NDArray[Any]]) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """The bytes of the rows in blocks, ``(N, bytes)``, and the row above each block, ``(1, bytes)``."""
    above = np.zeros((1, canvas.width * canvas.channels * canvas.bits // 8), np.uint8)
    count = max(_ROWS, _BLOCK // above.size)
    for band in bands:
        for start in range(0, len(band), count):
            part = band[start : start + count]
            rows = np.ascontiguousarray(part.astype(">u2") if canvas.bits == 16 else part)
            rows = rows.view(np.uint8).reshape(len(part), -1)
            yield rows, above
            above = rows[-1:].copy()


def _compressed_blocks(
    blocks: Iterable[tuple[NDArray[np.uint8], NDArray[np.uint8]]], step: int
) -> Iterator[tuple[bytes, bytes]]:
    """Filter and compress blocks of rows in threads; in order, the filtered and the compressed bytes of each."""
    threads = min(_MAX_THREADS, os.cpu_count() or 1)
    waiting: deque[Future[tuple[bytes, bytes]]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="foveal-png") as pool:
        for rows, above in blocks:
            waiting.append(pool.submit(_compress_block, rows, above, step))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _compress_block(rows: NDArray[np.uint8], above: NDArray[np.uint8], step: int) -> tuple[bytes, bytes]:
    """The filtered bytes of a block of rows, and the same compressed without reference to other blocks.

    With a step of 0, rows are not filtered: differences of a palette's indices mean nothing.
    """
    if step:
        filtered = _filter_paeth(rows, np.concatenate([above, rows[:-1]]), step).tobytes()
    else:
        filtered = np.pad(rows, ((0, 0), (1, 0))).tobytes()
    compressor = zlib.compressobj(_LEVEL, wbits=-zlib.MAX_WBITS)
    return filtered, compressor.compress(filtered) + compressor.flush(zlib.Z_SYNC_FLUSH)


def _filter_paeth(rows: NDArray[np.uint8], above: NDArray[np.uint8], step: int) -> NDArray[np.uint8]:
    """Filter rows by Paeth: each byte minus the one of three neighbours (left, above, above left) that predicts best.

    Args:
        rows: ``(N, bytes)``.
        above: the row above each of them, ``(N, bytes)``.
        step: bytes per pixel.

    Returns:
        ``(N, 1 + bytes)``: each row begins with the number of the filter.
    """
    b = above.astype(np.int16)
    a, c = np.zeros_like(b), np.zeros_like(b)
    a[:, step:], c[:, step:] = rows[:, :-step], b[:, :-step]
    to_a, to_b, to_c = np.abs(b - c), np.abs(a - c), np.abs(a + b - 2 * c)
    guess = np.where((to_a <= to_b) & (to_a <= to_c), a, np.where(to_b <= to_c, b, c))
    out = np.empty((len(rows), rows.shape[1] + 1), np.uint8)
    out[:, 0] = 4
    out[:, 1:] = rows - guess.astype(np.uint8)
    return out


def save_picture(picture: Image.Image, path: str | Path) -> None:
    """Write a Pillow image in the format of the suffix; if that fails, no partial file is left.

    Raises:
        InputError: the suffix is unknown, or the file cannot be written.
    """
    check_picture_name(path)
    with atomic_write(path) as temporary:
        picture.save(temporary)


def check_picture_name(path: str | Path) -> None:
    """Raise an InputError if the suffix is not that of an image format."""
    suffix = Path(path).suffix
    if suffix.lower() not in Image.registered_extensions():
        raise InputError(f"{path}: unknown picture format {suffix!r}; use .png or .jpg")


def stack_below(pictures: Sequence[Image.Image], background: tuple[int, int, int]) -> Image.Image:
    """Put pictures below each other, at the left, on a background."""
    sheet = Image.new("RGB", (max(each.width for each in pictures), sum(each.height for each in pictures)), background)
    top = 0
    for each in pictures:
        sheet.paste(each, (0, top))
        top += each.height
    return sheet


def stored_channels(pixels: NDArray[Any], grey: bool) -> NDArray[Any]:
    """Reduce ``(H, W, 3 or 4)`` to the channels to store: one channel instead of three if the picture is grey.

    Args:
        pixels: RGB, or RGB with alpha.
        grey: whether the three colour channels are equal.
    """
    return pixels[..., [0, *range(3, pixels.shape[2])]] if grey else pixels

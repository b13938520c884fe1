"""Decode JPEG files row by row, by libvips: its decoder is that of other images, so that all bits are the same.

libvips (LGPL) is a library of its own, which the package ``pyvips`` loads if it is installed.
"""

from __future__ import annotations

import io
from importlib import util
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import JpegImagePlugin

from ..errors import DependencyError, InputError
from . import decoding
from .bands import RGB, Bands

BAND_BYTES = 1 << 20  #: of a band of rows: libvips keeps several
INSTALL = "pip install 'foveal[jpeg]'"
_SEQUENTIAL = (0xC0, 0xC1)  # frames whose rows are stored in order (ITU-T T.81, table B.1)
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_SCAN = 0xDA


def is_installed() -> bool:
    """Whether JPEG files can be decoded row by row."""
    return util.find_spec("pyvips") is not None


def why_whole(file: BinaryIO, name: str) -> str:
    """Why a JPEG file cannot be decoded row by row, even with libvips; empty if it can.

    Raises:
        InputError: a damaged header.
    """
    with decoding.one_line_errors(name):
        file.seek(0)
        with JpegImagePlugin.JpegImageFile(file, "") as image:
            if image.mode not in ("L", "RGB"):
                return f"its colours are {image.mode}"
            if decoding.orientation_of(image) != 1:
                return "its EXIF data say that it is rotated or mirrored"
        return "" if _is_sequential(file) else "it is progressive, or stores its colours one after the other"


def _is_sequential(file: BinaryIO) -> bool:
    """Whether all colours of a row are stored together, and rows in order."""
    file.seek(2)
    components = 0
    while True:
        marker = _read_marker(file)
        length = int.from_bytes(file.read(2), "big")
        if length < 2:
            raise OSError("image file is truncated")
        if marker == _SCAN:
            return components == file.read(1)[0]
        if marker in _FRAMES and marker not in _SEQUENTIAL:
            return False
        if marker in _FRAMES:
            components = file.read(6)[5]
            file.seek(-6, io.SEEK_CUR)
        file.seek(length - 2, io.SEEK_CUR)


def _read_marker(file: BinaryIO) -> int:
    """The next marker; bytes of 255 before it are padding."""
    while (byte := file.read(1)) == b"\xff":
        pass
    if not byte:
        raise OSError("image file is truncated")
    return byte[0]


class JpegRows:
    """Decodes a JPEG file in bands; see :class:`~.row_raster.RowDecoder`.

    Args:
        file: one for which :func:`why_whole` is empty, open.
        bands: what a model takes: the rows are converted to it.
        name: of the file, for messages.

    Raises:
        InputError: a damaged file, or one with other bands than ``bands``.
        DependencyError: pyvips is not installed.
    """

    def __init__(self, file: BinaryIO, bands: Bands, name: str) -> None:
        try:
            import pyvips
        except (ImportError, OSError) as error:  # OSError: the package is there, the library is not
            raise DependencyError(f"{name}: to read it row by row, install libvips: {INSTALL}") from error
        self._vips: Any = pyvips
        self._file, self._bands = file, bands
        with decoding.one_line_errors(name):
            self.restart()
        image = self._image
        self.shape: tuple[int, int, int] = (image.height, image.width, 3 if bands == RGB else image.bands)
        self.dtype: np.dtype[Any] = np.dtype(np.uint8)
        if bands.count not in (0, self.shape[2]) or bands.dtype not in ("", "uint8"):
            raise InputError(f"{name}: {Bands(self.shape[2])}, but the model takes {bands}")

    def restart(self) -> None:
        """Continue with the first row."""
        self._file.seek(0)
        try:
            # Not by its name: libvips would map the file into memory, and remember what it has read.
            source = self._vips.SourceCustom()
            source.on_read(self._file.read)
            image = self._vips.Image.new_from_source(source, "", access="sequential", fail_on="warning")
        except self._vips.Error as error:
            raise OSError(_reason(error)) from error
        self._image, self._region, self._row = image, self._vips.Region.new(image), 0

    def decode(self, first_wanted: int) -> tuple[int, NDArray[Any] | None]:
        """Decode the next band of rows."""
        width, height, channels = self._image.width, self._image.height, self._image.bands
        count = min(max(1, BAND_BYTES // (width * channels)), height - self._row)
        try:
            data = self._region.fetch(0, self._row, width, count)
        except self._vips.Error as error:
            raise OSError(_reason(error)) from error
        self._row += count
        if self._row <= first_wanted:
            return self._row, None
        rows = np.frombuffer(data, np.uint8).reshape(count, width, channels)
        return self._row, np.repeat(rows, 3, axis=2) if channels < self.shape[2] else rows


def _reason(error: Exception) -> str:
    """What the decoder says, the last line of what libvips says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or ["not readable"])[-1].removeprefix("VipsJpeg: ")
